// A part of simd.h: vectors on AVX-512 (F, DQ, BW, VL).
#pragma once

namespace normkit {
namespace NK_ISA {

using vf = __m512;
using vd = __m512d;
using maskf = __mmask16;
using maskd = __mmask8;
constexpr int kFloats = 16, kDoubles = 8;  // lanes of a vector

NK_INLINE vf set1(float v) { return _mm512_set1_ps(v); }
NK_INLINE vd set1(double v) { return _mm512_set1_pd(v); }
NK_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
NK_INLINE vd load(const double* p) { return _mm512_loadu_pd(p); }
NK_INLINE void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
NK_INLINE void store(double* p, vd v) { _mm512_storeu_pd(p, v); }
NK_INLINE void stream(float* p, vf v) { _mm512_stream_ps(p, v); }
NK_INLINE void stream(double* p, vd v) { _mm512_stream_pd(p, v); }
NK_INLINE maskf first_f(int64_t n) { return (maskf)((1u << n) - 1u); }
NK_INLINE maskd first_d(int64_t n) { return (maskd)((1u << n) - 1u); }
NK_INLINE vf load_tail(const float* p, int64_t n, vf fill) { return _mm512_mask_loadu_ps(fill, first_f(n), p); }
NK_INLINE vd load_tail(const double* p, int64_t n, vd fill) { return _mm512_mask_loadu_pd(fill, first_d(n), p); }
NK_INLINE void store_tail(float* p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, first_f(n), v); }
NK_INLINE void store_tail(double* p, vd v, int64_t n) { _mm512_mask_storeu_pd(p, first_d(n), v); }
NK_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
NK_INLINE vd fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
// Greater-than is "not less or equal": a NaN counts as greater, so relu and its gradient let it through.
NK_INLINE maskf greater(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
NK_INLINE maskd greater(vd a, vd b) { return _mm512_cmp_pd_mask(a, b, _CMP_NLE_UQ); }
NK_INLINE vf select(maskf m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
NK_INLINE vd select(maskd m, vd yes, vd no) { return _mm512_mask_blend_pd(m, no, yes); }
NK_INLINE maskf both(maskf a, maskf b) { return (maskf)(a & b); }
NK_INLINE maskd both(maskd a, maskd b) { return (maskd)(a & b); }
NK_INLINE uint32_t to_bits(maskf m) { return m; }
NK_INLINE uint32_t to_bits_d(maskd m) { return m; }
NK_INLINE maskf mask_of(uint32_t bits) { return (maskf)bits; }
NK_INLINE maskd mask_of_d(uint32_t bits) { return (maskd)bits; }
NK_INLINE vf from_bf16(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
// To nearest even by adding half a step; a NaN, quiet as every result is, is kept as it is.
NK_INLINE __m256i as_bf16(vf v) {
    const __m512i u = _mm512_castps_si512(v);
    const __mmask16 number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
    const __mmask16 odd = _mm512_mask_test_epi32_mask(number, u, _mm512_set1_epi32(0x10000));
    __m512i r = _mm512_mask_add_epi32(u, number, u, _mm512_set1_epi32(0x7fff));
    r = _mm512_mask_add_epi32(r, odd, u, _mm512_set1_epi32(0x8000));
    alignas(64) static constexpr uint16_t upper[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(_mm512_load_si512(upper), r));
}
NK_INLINE vf load(const bf16* p) { return from_bf16(_mm256_loadu_si256((const __m256i*)p)); }
NK_INLINE vf load(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
NK_INLINE void store(bf16* p, vf v) { _mm256_storeu_si256((__m256i*)p, as_bf16(v)); }
NK_INLINE void store(f16* p, vf v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
NK_INLINE void stream(bf16* p, vf v) { _mm256_stream_si256((__m256i*)p, as_bf16(v)); }
NK_INLINE void stream(f16* p, vf v) { _mm256_stream_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
NK_INLINE vf load_tail(const bf16* p, int64_t n, vf fill) {
    return _mm512_mask_blend_ps(first_f(n), fill, from_bf16(_mm256_maskz_loadu_epi16(first_f(n), p)));
}
NK_INLINE vf load_tail(const f16* p, int64_t n, vf fill) {
    return _mm512_mask_blend_ps(first_f(n), fill, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_f(n), p)));
}
NK_INLINE void store_tail(bf16* p, vf v, int64_t n) { _mm256_mask_storeu_epi16(p, first_f(n), as_bf16(v)); }
NK_INLINE void store_tail(f16* p, vf v, int64_t n) {
    _mm256_mask_storeu_epi16(p, first_f(n), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
NK_INLINE vd low_half(vf v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
NK_INLINE vd high_half(vf v) {
    return _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
}
NK_INLINE vd load_as_doubles(const float* p) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
}  // no shuffle, unlike a half
NK_INLINE vf join(vd lo, vd hi) {
    __m512d low = _mm512_castps_pd(_mm512_castps256_ps512(_mm512_cvtpd_ps(lo)));
    return _mm512_castpd_ps(_mm512_insertf64x4(low, _mm256_castps_pd(_mm512_cvtpd_ps(hi)), 1));
}
// x, but not below (above) a number; the second operand where one is NaN.
NK_INLINE vf at_least(vf x, vf least) { return _mm512_max_ps(least, x); }
NK_INLINE vf at_most(vf x, vf most) { return _mm512_min_ps(most, x); }
NK_INLINE double first_lane(vd v) { return _mm512_cvtsd_f64(v); }

}  // namespace NK_ISA
}  // namespace normkit
