// The one vector layer. kernels.cmake defines NK_ISA (a namespace) and NK_LEVEL (0 baseline, 1 AVX2+FMA+F16C, 2 AVX-512)
// and has the kernels compiled once over each.
//
// Rules: V is a vector of floats (vf) or doubles (vd); L is its number of lanes and a multiple of 8 for floats, so that
// sign bits fill whole bytes at every level. Tails never touch memory outside the array. Level 0 is written in the
// compiler's generic vectors only: it serves every CPU the compiler knows.
#pragma once
#include <cstdint>
#include <cstring>

#include "view.h"
#if NK_LEVEL > 0
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace normkit {
namespace NK_ISA {

#define NK_INLINE inline __attribute__((always_inline))

#if NK_LEVEL == 2
using vf = __m512;
using vd = __m512d;
using maskf = __mmask16;
using maskd = __mmask8;
constexpr int kFloats = 16, kDoubles = 8;

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
NK_INLINE maskf above(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
NK_INLINE maskd above(vd a, vd b) { return _mm512_cmp_pd_mask(a, b, _CMP_NLE_UQ); }
NK_INLINE vf pick(maskf m, vf yes, vf no) { return _mm512_mask_blend_ps(m, no, yes); }
NK_INLINE vd pick(maskd m, vd yes, vd no) { return _mm512_mask_blend_pd(m, no, yes); }
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
NK_INLINE vd load_as_doubles(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }  // no shuffle, unlike a half
NK_INLINE vf join(vd lo, vd hi) {
    __m512d low = _mm512_castps_pd(_mm512_castps256_ps512(_mm512_cvtpd_ps(lo)));
    return _mm512_castpd_ps(_mm512_insertf64x4(low, _mm256_castps_pd(_mm512_cvtpd_ps(hi)), 1));
}

#elif NK_LEVEL == 1
using vf = __m256;
using vd = __m256d;
using maskf = __m256;
using maskd = __m256d;
constexpr int kFloats = 8, kDoubles = 4;

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
NK_INLINE maskf above(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_NLE_UQ); }
NK_INLINE maskd above(vd a, vd b) { return _mm256_cmp_pd(a, b, _CMP_NLE_UQ); }
NK_INLINE vf pick(maskf m, vf yes, vf no) { return _mm256_blendv_ps(no, yes, m); }
NK_INLINE vd pick(maskd m, vd yes, vd no) { return _mm256_blendv_pd(no, yes, m); }
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

#else
typedef float vf __attribute__((vector_size(32)));
typedef double vd __attribute__((vector_size(32)));
typedef int32_t maskf __attribute__((vector_size(32)));
typedef int64_t maskd __attribute__((vector_size(32)));
typedef float half_vf __attribute__((vector_size(16)));
typedef double half_vd __attribute__((vector_size(16)));
constexpr int kFloats = 8, kDoubles = 4;

template <class V, class T> NK_INLINE V read_as(const T* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
NK_INLINE vf set1(float v) { return vf{v, v, v, v, v, v, v, v}; }
NK_INLINE vd set1(double v) { return vd{v, v, v, v}; }
NK_INLINE vf load(const float* p) { return read_as<vf>(p); }
NK_INLINE vd load(const double* p) { return read_as<vd>(p); }
NK_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
NK_INLINE void store(double* p, vd v) { std::memcpy(p, &v, sizeof v); }
#if defined(__SSE2__)
NK_INLINE void stream(float* p, vf v) {
    _mm_stream_ps(p, (__m128)read_as<half_vf>(&v));
    _mm_stream_ps(p + 4, (__m128)read_as<half_vf>((const float*)&v + 4));
}
#else
NK_INLINE void stream(float* p, vf v) { store(p, v); }
#endif
NK_INLINE void stream(double* p, vd v) { store(p, v); }
NK_INLINE vf load_tail(const float* p, int64_t n, vf fill) {
    for (int64_t i = 0; i < n; ++i) fill[i] = p[i];
    return fill;
}
NK_INLINE vd load_tail(const double* p, int64_t n, vd fill) {
    for (int64_t i = 0; i < n; ++i) fill[i] = p[i];
    return fill;
}
NK_INLINE void store_tail(float* p, vf v, int64_t n) { for (int64_t i = 0; i < n; ++i) p[i] = v[i]; }
NK_INLINE void store_tail(double* p, vd v, int64_t n) { for (int64_t i = 0; i < n; ++i) p[i] = v[i]; }
NK_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }  // two roundings: inside the contract's bound, and no libm call
NK_INLINE vd fma(vd a, vd b, vd c) { return a * b + c; }
// Comparisons in halves and choices by bits: of 32 bytes GCC makes both lane by lane where registers have 16, ten times
// the time of a relu.
template <class Mask, class Half, class V> NK_INLINE Mask above_in_halves(V a, V b) {
    Half x[2], y[2];
    std::memcpy(x, &a, sizeof x);
    std::memcpy(y, &b, sizeof y);
    const auto low = ~(x[0] <= y[0]), high = ~(x[1] <= y[1]);
    const decltype(low) halves[2] = {low, high};
    return read_as<Mask>(halves);
}
NK_INLINE maskf above(vf a, vf b) { return above_in_halves<maskf, half_vf>(a, b); }
NK_INLINE maskd above(vd a, vd b) { return above_in_halves<maskd, half_vd>(a, b); }
NK_INLINE vf pick(maskf m, vf yes, vf no) { return (vf)(((maskf)yes & m) | ((maskf)no & ~m)); }
NK_INLINE vd pick(maskd m, vd yes, vd no) { return (vd)(((maskd)yes & m) | ((maskd)no & ~m)); }
NK_INLINE maskf both(maskf a, maskf b) { return a & b; }
NK_INLINE maskd both(maskd a, maskd b) { return a & b; }
NK_INLINE uint32_t to_bits(maskf m) {
    const maskf lane = {1, 2, 4, 8, 16, 32, 64, 128};
    maskf hit = m & lane;
    return (uint32_t)(hit[0] | hit[1] | hit[2] | hit[3] | hit[4] | hit[5] | hit[6] | hit[7]);
}
NK_INLINE uint32_t to_bits_d(maskd m) {
    const maskd lane = {1, 2, 4, 8};
    maskd hit = m & lane;
    return (uint32_t)(hit[0] | hit[1] | hit[2] | hit[3]);
}
NK_INLINE maskf mask_of(uint32_t bits) {
    const maskf lane = {1, 2, 4, 8, 16, 32, 64, 128};
    int32_t b = (int32_t)bits;
    return ((maskf{b, b, b, b, b, b, b, b} & lane) == lane);
}
NK_INLINE maskd mask_of_d(uint32_t bits) {
    const maskd lane = {1, 2, 4, 8};
    int64_t b = (int64_t)bits;
    return ((maskd{b, b, b, b} & lane) == lane);
}
NK_INLINE vf load(const bf16* p) {
    vf v;
    for (int i = 0; i < kFloats; ++i) v[i] = to_float(p[i]);
    return v;
}
NK_INLINE vf load(const f16* p) {
    vf v;
    for (int i = 0; i < kFloats; ++i) v[i] = to_float(p[i]);
    return v;
}
NK_INLINE void store(bf16* p, vf v) { for (int i = 0; i < kFloats; ++i) p[i] = to_bf16(v[i]); }
NK_INLINE void store(f16* p, vf v) { for (int i = 0; i < kFloats; ++i) p[i] = to_f16(v[i]); }
NK_INLINE void stream(bf16* p, vf v) { store(p, v); }
NK_INLINE void stream(f16* p, vf v) { store(p, v); }
NK_INLINE vd low_half(vf v) { return vd{v[0], v[1], v[2], v[3]}; }
NK_INLINE vd high_half(vf v) { return vd{v[4], v[5], v[6], v[7]}; }
NK_INLINE vd load_as_doubles(const float* p) { return vd{p[0], p[1], p[2], p[3]}; }
NK_INLINE vf join(vd lo, vd hi) {
    return vf{(float)lo[0], (float)lo[1], (float)lo[2], (float)lo[3],
              (float)hi[0], (float)hi[1], (float)hi[2], (float)hi[3]};
}
#endif

#if NK_LEVEL < 2
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

}  // namespace NK_ISA
}  // namespace normkit
