// Sums across the lanes of many vectors at once.
//
// One vector at a time a horizontal sum takes as long as half a row of 49 elements; side by side, transposed on the way,
// kDoubles of them take little more than one.
#pragma once
#include <cstdint>

#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

// The sums across each of kDoubles vectors, as one vector.
#if NK_LEVEL == 2
NK_INLINE vd sums_across(const vd* v) {
    auto pairs = [](vd a, vd b) { return _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b)); };
    auto fold = [](vd a, vd b) {
        return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd));
    };
    return fold(fold(pairs(v[0], v[1]), pairs(v[2], v[3])), fold(pairs(v[4], v[5]), pairs(v[6], v[7])));
}
#elif NK_LEVEL == 1
NK_INLINE vd sums_across(const vd* v) {
    const vd a = _mm256_hadd_pd(v[0], v[1]), b = _mm256_hadd_pd(v[2], v[3]);
    return _mm256_add_pd(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
}
#else
NK_INLINE vd sums_across(const vd* v) {
    auto fold = [](half_vd a, half_vd b) { return half_vd{a[0], b[0]} + half_vd{a[1], b[1]}; };
    return {fold(v[0].lo + v[0].hi, v[1].lo + v[1].hi), fold(v[2].lo + v[2].hi, v[3].lo + v[3].hi)};
}
#endif

// to[i] = the sum across v[i]; count is a multiple of kDoubles.
NK_INLINE void sums_across(const vd* v, int64_t count, double* to) {
    for (int64_t i = 0; i < count; i += kDoubles) store(to + i, sums_across(v + i));
}

}  // namespace NK_ISA
}  // namespace normkit
