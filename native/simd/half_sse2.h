// A part of simd.h: what one register does on SSE2: every x86-64.
#pragma once

namespace normkit {
namespace NK_ISA {

// Two roundings: inside the contract's bound, and no call of the C library.
NK_INLINE half_vf fma(half_vf a, half_vf b, half_vf c) { return a * b + c; }
NK_INLINE half_vd fma(half_vd a, half_vd b, half_vd c) { return a * b + c; }
NK_INLINE half_maskf greater(half_vf a, half_vf b) { return (half_maskf)_mm_cmpnle_ps(a, b); }
NK_INLINE half_maskd greater(half_vd a, half_vd b) { return (half_maskd)_mm_cmpnle_pd(a, b); }
NK_INLINE half_vf at_least(half_vf x, half_vf least) {
    return _mm_max_ps(least, x);
}  // the second operand where one is NaN
NK_INLINE half_vf at_most(half_vf x, half_vf most) { return _mm_min_ps(most, x); }
NK_INLINE uint32_t to_bits(half_maskf m) { return uint32_t(_mm_movemask_ps((__m128)m)); }
NK_INLINE uint32_t to_bits(half_maskd m) { return uint32_t(_mm_movemask_pd((__m128d)m)); }
NK_INLINE void stream(float* p, half_vf v) { _mm_stream_ps(p, v); }
NK_INLINE void stream(double* p, half_vd v) { _mm_stream_pd(p, v); }
NK_INLINE half_vd low_doubles(half_vf v) { return _mm_cvtps_pd(v); }
NK_INLINE half_vd high_doubles(half_vf v) { return _mm_cvtps_pd(_mm_movehl_ps(v, v)); }
NK_INLINE half_vf as_floats(half_vd lo, half_vd hi) { return _mm_movelh_ps(_mm_cvtpd_ps(lo), _mm_cvtpd_ps(hi)); }

// Four of eight words of 16 bits, and back: the lower 16 bits of each lane.
NK_INLINE half_words low_words(const void* p) {
    return (half_words)_mm_unpacklo_epi16(_mm_loadu_si128((const __m128i*)p), _mm_setzero_si128());
}
NK_INLINE half_words high_words(const void* p) {
    return (half_words)_mm_unpackhi_epi16(_mm_loadu_si128((const __m128i*)p), _mm_setzero_si128());
}
NK_INLINE void put_words(void* p, half_words lo, half_words hi) {
    auto signed_words = [](half_words v) { return _mm_srai_epi32(_mm_slli_epi32((__m128i)v, 16), 16); };
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(signed_words(lo), signed_words(hi)));
}

}  // namespace NK_ISA
}  // namespace normkit
