// The one vector layer. kernels.cmake defines NK_ISA (a namespace) and NK_LEVEL (0: 16-byte registers, which are SSE2's,
// NEON's or the compiler's; 1: AVX2; 2: AVX-512) and has the kernels compiled once over each.
//
// Rules: V is a vector of floats (vf) or doubles (vd); L is its number of lanes and a multiple of 8 for floats, so that
// sign bits fill whole bytes at every level. Tails never touch memory outside the array.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "view.h"
#if NK_LEVEL > 0
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define NK_INLINE inline __attribute__((always_inline))

// On a lambda: force-inline its body. A body left apart keeps its caller's sums in memory.
#define NK_IN_PLACE __attribute__((always_inline))

// Parts of this header, in this order.
#if NK_LEVEL == 2
#include "simd/avx512.h"
#elif NK_LEVEL == 1
#include "simd/avx2.h"
#else
#include "simd/half.h"
#if defined(__SSE2__)
#include "simd/half_sse2.h"
#elif defined(__aarch64__)
#include "simd/half_neon.h"
#else
#include "simd/half_generic.h"
#endif
#include "simd/halves.h"
#endif

namespace normkit {
namespace NK_ISA {

#if NK_LEVEL > 0 || defined(__SSE2__)
constexpr bool kStreams = true;  // there are stores that bypass the cache
#else
constexpr bool kStreams = false;
#endif

#if NK_LEVEL > 0 || defined(__aarch64__)
constexpr bool kCommonForms = true;  // the common activations have forms of their own (forms.h)
#else
constexpr bool kCommonForms = false;  // the baseline: what few CPUs run is not worth a half of the build
#endif

NK_INLINE double sum_lanes(vd v) {  // lanes added in pairs: one fixed order
    double t[kDoubles];
    store(t, v);
    for (int w = kDoubles / 2; w > 0; w /= 2)
        for (int i = 0; i < w; ++i) t[i] += t[i + w];
    return t[0];
}

// Order a streaming store before whatever publishes the result (the end of the parallel region).
NK_INLINE void stream_fence() {
#if NK_LEVEL > 0 || defined(__SSE2__)
    _mm_sfence();
#endif
}

NK_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
NK_INLINE void prefetch_to_write(const void* p) { __builtin_prefetch(p, 1, 3); }

}  // namespace NK_ISA
}  // namespace normkit
