// A part of simd.h: vectors on AVX2, FMA and F16C.
#pragma once

namespace normkit {
namespace NK_ISA {

using vf = __m256;
using vd = __m256d;
using maskf = __m256;
using maskd = __m256d;
constexpr int kFloats = 8, kDoubles = 4;  // lanes of a vector

NK_INLINE vf set1(float v) { return _mm256_set1_ps(v); }
NK_INLINE vd set1(double v) { return _mm256_set1_pd(v); }
NK_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
NK_INLINE vd load(const double* p) { return _mm256_loadu_pd(p); }
NK_INLINE void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
NK_INLINE void store(double* p, vd v) { _mm256_storeu_pd(p, v); }
NK_INLINE void stream(float* p, vf v) { _mm256_stream_ps(p, v); }
NK_INLINE void stream(double* p, vd v) { _mm256_stream_pd(p, v); }
NK_INLINE __m256i first_f(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
NK_INLINE __m256i first_d(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
NK_INLINE vf load_tail(const float* p, int64_t n, vf fill) {
    __m256i m = first_f(n);
    return _mm256_blendv_ps(fill, _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
}
NK_INLINE vd load_tail(const double* p, int64_t n, vd fill) {
    __m256i m = first_d(n);
    return _mm256_blendv_pd(fill, _mm256_maskload_pd(p, m), _mm256_castsi256_pd(m));
}
NK_INLINE void store_tail(float* p, vf v, int64_t n) { _mm256_maskstore_ps(p, first_f(n), v); }
NK_INLINE void store_tail(double* p, vd v, int64_t n) { _mm256_maskstore_pd(p, first_d(n), v); }
NK_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
NK_INLINE vd fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
NK_INLINE maskf greater(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_NLE_UQ); }
NK_INLINE maskd greater(vd a, vd b) { return _mm256_cmp_pd(a, b, _CMP_NLE_UQ); }
NK_INLINE vf select(maskf m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }
NK_INLINE vd select(maskd m, vd yes, vd no) { return _mm256_blendv_pd(no, yes, m); }
NK_INLINE maskf both(maskf a, maskf b) { return _mm256_and_ps(a, b); }
NK_INLINE maskd both(maskd a, maskd b) { return _mm256_and_pd(a, b); }
NK_INLINE uint32_t to_bits(maskf m) { return (uint32_t)_mm256_movemask_ps(m); }
NK_INLINE uint32_t to_bits_d(maskd m) { return (uint32_t)_mm256_movemask_pd(m); }
NK_INLINE maskf mask_of(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane));
}
NK_INLINE maskd mask_of_d(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x((int64_t)bits), lane), lane));
}
NK_INLINE vf from_bf16(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
NK_INLINE __m128i as_bf16(vf v) {
    const __m256i u = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i even = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(even, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}
NK_INLINE __m128i as_f16(vf v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
NK_INLINE vf load(const bf16* p) { return from_bf16(_mm_loadu_si128((const __m128i*)p)); }
NK_INLINE vf load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
NK_INLINE void store(bf16* p, vf v) { _mm_storeu_si128((__m128i*)p, as_bf16(v)); }
NK_INLINE void store(f16* p, vf v) { _mm_storeu_si128((__m128i*)p, as_f16(v)); }
NK_INLINE void stream(bf16* p, vf v) { _mm_stream_si128((__m128i*)p, as_bf16(v)); }
NK_INLINE void stream(f16* p, vf v) { _mm_stream_si128((__m128i*)p, as_f16(v)); }
NK_INLINE vd low_half(vf v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
NK_INLINE vd high_half(vf v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
NK_INLINE vd load_as_doubles(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
NK_INLINE vf join(vd lo, vd hi) { return _mm256_set_m128(_mm256_cvtpd_ps(hi), _mm256_cvtpd_ps(lo)); }
NK_INLINE vf at_least(vf x, vf least) { return _mm256_max_ps(least, x); }  // the second operand where one is NaN
NK_INLINE vf at_most(vf x, vf most) { return _mm256_min_ps(most, x); }
NK_INLINE double first_lane(vd v) { return _mm256_cvtsd_f64(v); }
// The lowest bits as the exponent: of 1.5 * 2^23 + 127 + k, 2^k.
NK_INLINE vf power_from(vf v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23)); }

// Tails of the 16-bit types go through a buffer: no masked 16-bit loads below AVX-512.
template <class Half> NK_INLINE vf load_tail_of_halves(const Half* p, int64_t n, vf fill) {
    Half buffer[kFloats] = {};
    std::memcpy(buffer, p, size_t(n) * sizeof(Half));
    float values[kFloats], kept[kFloats];
    store(values, load(buffer));
    store(kept, fill);
    std::memcpy(kept, values, size_t(n) * sizeof(float));
    return load(kept);
}
template <class Half> NK_INLINE void store_tail_of_halves(Half* p, vf v, int64_t n) {
    Half buffer[kFloats];
    store(buffer, v);
    std::memcpy(p, buffer, size_t(n) * sizeof(Half));
}
NK_INLINE vf load_tail(const bf16* p, int64_t n, vf fill) { return load_tail_of_halves(p, n, fill); }
NK_INLINE vf load_tail(const f16* p, int64_t n, vf fill) { return load_tail_of_halves(p, n, fill); }
NK_INLINE void store_tail(bf16* p, vf v, int64_t n) { store_tail_of_halves(p, v, n); }
NK_INLINE void store_tail(f16* p, vf v, int64_t n) { store_tail_of_halves(p, v, n); }

}  // namespace NK_ISA
}  // namespace normkit
