// bfloat16 rows taken twice as wide: a vector of the even elements and one of the odd.
//
// A word of memory is a pair of bfloat16. Shifted up it is the even one as a float, with its lower half cleared the odd
// one: three instructions for 32 elements, none of which moves lanes, and they are rounded and packed again together.
// Sweeps whose constants are those of one channel do not see the order of the lanes; constants of many are taken apart.
#pragma once
#include "simd/lanes.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

// The element type as whose vectors the rows of T are taken.
template <class T> struct InRows {
    using type = T;
};
template <class T> using InRow = typename InRows<T>::type;

#if NK_LEVEL == 2
struct Paired;
template <> struct InRows<bf16> {
    using type = Paired;
};

struct Pairs {
    vf even, odd;
};
struct PairMask {
    maskf even, odd;
};

NK_INLINE Pairs operator+(Pairs x, Pairs y) { return {x.even + y.even, x.odd + y.odd}; }
NK_INLINE Pairs operator-(Pairs x, Pairs y) { return {x.even - y.even, x.odd - y.odd}; }
NK_INLINE Pairs operator*(Pairs x, Pairs y) { return {x.even * y.even, x.odd * y.odd}; }
NK_INLINE Pairs fma(Pairs x, Pairs y, Pairs z) { return {fma(x.even, y.even, z.even), fma(x.odd, y.odd, z.odd)}; }
NK_INLINE PairMask greater(Pairs x, Pairs y) { return {greater(x.even, y.even), greater(x.odd, y.odd)}; }
NK_INLINE PairMask both(PairMask x, PairMask y) { return {both(x.even, y.even), both(x.odd, y.odd)}; }
NK_INLINE Pairs select(PairMask m, Pairs yes, Pairs no) {
    return {select(m.even, yes.even, no.even), select(m.odd, yes.odd, no.odd)};
}
NK_INLINE Pairs at_least(Pairs x, Pairs least) { return {at_least(x.even, least.even), at_least(x.odd, least.odd)}; }
NK_INLINE Pairs at_most(Pairs x, Pairs most) { return {at_most(x.even, most.even), at_most(x.odd, most.odd)}; }
NK_INLINE uint32_t to_bits(PairMask m) { return _pdep_u32(m.even, 0x55555555u) | _pdep_u32(m.odd, 0xaaaaaaaau); }
NK_INLINE vf folded(vf v) { return v; }
NK_INLINE vf folded(Pairs v) { return v.even + v.odd; }

template <> struct Num<Paired> {
    using V = Pairs;
    using Scalar = float;
    using Mask = PairMask;
    static constexpr int kCount = 2 * kLanes;

    static constexpr __mmask32 kOdd = 0xaaaaaaaau;
    static NK_INLINE __mmask32 first(int64_t n) { return __mmask32(_bzhi_u32(~0u, uint32_t(n))); }
    static NK_INLINE V set(double v) { return {set1(float(v)), set1(float(v))}; }
    // Of 32 neighbours.
    static NK_INLINE V get_constants(const float* p) {
        const vf lower = load(p), upper = load(p + kLanes);
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
        return {_mm512_permutex2var_ps(lower, even, upper), _mm512_permutex2var_ps(lower, odd, upper)};
    }
    static NK_INLINE V apart(__m512i words) {
        const __m512i upper = _mm512_set1_epi32(int(0xffff0000u));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), _mm512_castsi512_ps(_mm512_and_si512(words, upper))};
    }
    // To nearest even, all 32 together: up where the lower halves are above one half, or one half and the upper ones odd.
    // Never on from the last of the NaN, which would be a zero.
    static NK_INLINE __m512i rounded(V v) {
        const __m512i e = _mm512_castps_si512(v.even), o = _mm512_castps_si512(v.odd), one = _mm512_set1_epi16(1);
        const __m512i upper = _mm512_mask_blend_epi16(kOdd, _mm512_srli_epi32(e, 16), o);
        const __m512i lower = _mm512_mask_blend_epi16(kOdd, e, _mm512_slli_epi32(o, 16));
        const __m512i next = _mm512_add_epi16(upper, one);
        const __m512i least =
            _mm512_ternarylogic_epi32(upper, one, _mm512_set1_epi16(int16_t(0x8000)), 0xae);  // ~a & b | c
        const __mmask32 number = _mm512_test_epi16_mask(next, _mm512_set1_epi16(0x7fff));
        return _mm512_mask_mov_epi16(upper, _mm512_mask_cmpge_epu16_mask(number, lower, least), next);
    }
    static NK_INLINE V get(const bf16* p, int) { return apart(_mm512_loadu_si512(p)); }
    static NK_INLINE V get_tail(const bf16* p, int64_t n, V fill) {
        return select(mask(first(n)), apart(_mm512_maskz_loadu_epi16(first(n), p)), fill);
    }
    static NK_INLINE void put(bf16* p, V v) { _mm512_storeu_si512(p, rounded(v)); }
    static NK_INLINE void put_stream(bf16* p, V v) {  // by halves: rows start at multiples of one
        const __m512i r = rounded(v);
        _mm256_stream_si256((__m256i*)p, _mm512_castsi512_si256(r));
        _mm256_stream_si256((__m256i*)p + 1, _mm512_extracti64x4_epi64(r, 1));
    }
    static NK_INLINE void put_tail(bf16* p, V v, int64_t n) { _mm512_mask_storeu_epi16(p, first(n), rounded(v)); }
    static NK_INLINE Mask mask(uint32_t bits) {
        return {maskf(_pext_u32(bits, 0x55555555u)), maskf(_pext_u32(bits, kOdd))};
    }
};
#else
NK_INLINE vf folded(vf v) { return v; }
#endif

}  // namespace NK_ISA
}  // namespace normkit
