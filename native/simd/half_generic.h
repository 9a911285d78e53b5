// A part of simd.h: what one register does in the compiler's own vectors: every CPU that it knows.
#pragma once

namespace normkit {
namespace NK_ISA {

NK_INLINE half_vf fma(half_vf a, half_vf b, half_vf c) { return a * b + c; }
NK_INLINE half_vd fma(half_vd a, half_vd b, half_vd c) { return a * b + c; }
NK_INLINE half_maskf greater(half_vf a, half_vf b) { return ~(a <= b); }
NK_INLINE half_maskd greater(half_vd a, half_vd b) { return ~(a <= b); }
NK_INLINE half_vf at_least(half_vf x, half_vf least) { return select(greater(x, least), x, least); }
NK_INLINE half_vf at_most(half_vf x, half_vf most) { return select(greater(most, x), x, most); }
NK_INLINE uint32_t to_bits(half_maskf m) { return uint32_t((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8)); }
NK_INLINE uint32_t to_bits(half_maskd m) { return uint32_t((m[0] & 1) | (m[1] & 2)); }
NK_INLINE void stream(float* p, half_vf v) { std::memcpy(p, &v, sizeof v); }
NK_INLINE void stream(double* p, half_vd v) { std::memcpy(p, &v, sizeof v); }
NK_INLINE half_vd low_doubles(half_vf v) { return half_vd{v[0], v[1]}; }
NK_INLINE half_vd high_doubles(half_vf v) { return half_vd{v[2], v[3]}; }
NK_INLINE half_vf as_floats(half_vd lo, half_vd hi) {
    return half_vf{float(lo[0]), float(lo[1]), float(hi[0]), float(hi[1])};
}

// Four of eight words of 16 bits, and back: the lower 16 bits of each lane.
NK_INLINE half_words low_words(const void* p) {
    uint16_t w[4];
    std::memcpy(w, p, sizeof w);
    return half_words{w[0], w[1], w[2], w[3]};
}
NK_INLINE half_words high_words(const void* p) { return low_words((const char*)p + 8); }
NK_INLINE void put_words(void* p, half_words lo, half_words hi) {
    const uint16_t w[8] = {uint16_t(lo[0]), uint16_t(lo[1]), uint16_t(lo[2]), uint16_t(lo[3]),
                           uint16_t(hi[0]), uint16_t(hi[1]), uint16_t(hi[2]), uint16_t(hi[3])};
    std::memcpy(p, w, sizeof w);
}

}  // namespace NK_ISA
}  // namespace normkit
