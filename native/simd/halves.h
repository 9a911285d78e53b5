// A part of simd.h: vectors of two 16-byte registers, so that sign bits fill whole bytes.
#pragma once

namespace normkit {
namespace NK_ISA {

// To nearest even by adding half a step, the upper 16 bits as a word; a NaN stays one, and becomes quiet.
NK_INLINE half_words as_bf16(half_vf v) {
    const half_words u = (half_words)v, even = u + 0x7fffu + ((u >> 16) & 1u);
    return select((half_words)(v != v), u | 0x400000u, even) >> 16;
}

#if !defined(__aarch64__)
// The exponent's bias is corrected by a multiplication, which also normalizes subnormals.
NK_INLINE half_vf from_f16(half_words w) {
    const half_words sign = (w & 0x8000u) << 16, body = w & 0x7fffu;
    const half_words scaled = (half_words)((half_vf)(body << 13) * half_vf{0x1p112f, 0x1p112f, 0x1p112f, 0x1p112f});
    const half_words special = 0x7f800000u | ((body & 0x3ffu) << 13);
    return (half_vf)(sign | select((half_words)((half_maskf)body >= 0x7c00), special, scaled));
}
// As to_f16 of view.h, all lanes at once.
NK_INLINE half_words as_f16(half_vf v) {
    const half_words u = (half_words)v, sign = (u >> 16) & 0x8000u, body = u & 0x7fffffffu;
    const half_maskf size = (half_maskf)body;
    const half_words small = (half_words)((half_vf)body + half_vf{0.5f, 0.5f, 0.5f, 0.5f}) - 0x3f000000u;
    const half_words normal = (body - 0x38000000u + 0xfffu + ((body >> 13) & 1u)) >> 13;
    const half_words infinite = {0x7c00u, 0x7c00u, 0x7c00u, 0x7c00u}, nan = {0x7e00u, 0x7e00u, 0x7e00u, 0x7e00u};
    half_words r = select((half_words)(size < 0x38800000), small, normal);
    r = select((half_words)(size >= 0x477ff000), infinite, r);  // rounds to 65536 or more
    return sign | select((half_words)(size > 0x7f800000), nan, r);
}
NK_INLINE half_vf low_from_f16(const void* p) { return from_f16(low_words(p)); }
NK_INLINE half_vf high_from_f16(const void* p) { return from_f16(high_words(p)); }
NK_INLINE void put_f16(void* p, half_vf lo, half_vf hi) { put_words(p, as_f16(lo), as_f16(hi)); }
#endif

struct vf {
    half_vf lo, hi;
};
struct vd {
    half_vd lo, hi;
};
struct maskf {
    half_maskf lo, hi;
};
struct maskd {
    half_maskd lo, hi;
};
constexpr int kFloats = 8, kDoubles = 4;  // lanes of a vector

NK_INLINE vf operator+(vf a, vf b) { return {a.lo + b.lo, a.hi + b.hi}; }
NK_INLINE vd operator+(vd a, vd b) { return {a.lo + b.lo, a.hi + b.hi}; }
NK_INLINE vf operator-(vf a, vf b) { return {a.lo - b.lo, a.hi - b.hi}; }
NK_INLINE vd operator-(vd a, vd b) { return {a.lo - b.lo, a.hi - b.hi}; }
NK_INLINE vf operator*(vf a, vf b) { return {a.lo * b.lo, a.hi * b.hi}; }
NK_INLINE vd operator*(vd a, vd b) { return {a.lo * b.lo, a.hi * b.hi}; }
NK_INLINE vf operator/(vf a, vf b) { return {a.lo / b.lo, a.hi / b.hi}; }
NK_INLINE vd operator/(vd a, vd b) { return {a.lo / b.lo, a.hi / b.hi}; }
NK_INLINE vf fma(vf a, vf b, vf c) { return {fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi)}; }
NK_INLINE vd fma(vd a, vd b, vd c) { return {fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi)}; }
NK_INLINE maskf greater(vf a, vf b) { return {greater(a.lo, b.lo), greater(a.hi, b.hi)}; }
NK_INLINE maskd greater(vd a, vd b) { return {greater(a.lo, b.lo), greater(a.hi, b.hi)}; }
NK_INLINE vf select(maskf m, vf yes, vf no) { return {select(m.lo, yes.lo, no.lo), select(m.hi, yes.hi, no.hi)}; }
NK_INLINE vd select(maskd m, vd yes, vd no) { return {select(m.lo, yes.lo, no.lo), select(m.hi, yes.hi, no.hi)}; }
NK_INLINE vf at_least(vf x, vf least) { return {at_least(x.lo, least.lo), at_least(x.hi, least.hi)}; }
NK_INLINE vf at_most(vf x, vf most) { return {at_most(x.lo, most.lo), at_most(x.hi, most.hi)}; }
NK_INLINE maskf both(maskf a, maskf b) { return {a.lo & b.lo, a.hi & b.hi}; }
NK_INLINE maskd both(maskd a, maskd b) { return {a.lo & b.lo, a.hi & b.hi}; }
NK_INLINE uint32_t to_bits(maskf m) { return to_bits(m.lo) | (to_bits(m.hi) << 4); }
NK_INLINE uint32_t to_bits_d(maskd m) { return to_bits(m.lo) | (to_bits(m.hi) << 2); }
NK_INLINE maskf mask_of(uint32_t bits) {
    const half_maskf low = {1, 2, 4, 8}, high = {16, 32, 64, 128};
    const int32_t b = int32_t(bits);
    const half_maskf all = {b, b, b, b};
    return {(all & low) == low, (all & high) == high};
}
NK_INLINE maskd mask_of_d(uint32_t bits) {
    const half_maskd low = {1, 2}, high = {4, 8};
    const int64_t b = bits;
    const half_maskd all = {b, b};
    return {(all & low) == low, (all & high) == high};
}

NK_INLINE vf set1(float v) { return {half_vf{v, v, v, v}, half_vf{v, v, v, v}}; }
NK_INLINE vd set1(double v) { return {half_vd{v, v}, half_vd{v, v}}; }
NK_INLINE vf load(const float* p) { return {read_half(p), read_half(p + 4)}; }
NK_INLINE vd load(const double* p) { return {read_half(p), read_half(p + 2)}; }
NK_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
NK_INLINE void store(double* p, vd v) { std::memcpy(p, &v, sizeof v); }
NK_INLINE void stream(float* p, vf v) { stream(p, v.lo), stream(p + 4, v.hi); }
NK_INLINE void stream(double* p, vd v) { stream(p, v.lo), stream(p + 2, v.hi); }
NK_INLINE double first_lane(vd v) { return v.lo[0]; }
NK_INLINE vf power_from(vf v) {  // the lowest bits as the exponent: of 1.5 * 2^23 + 127 + k, 2^k
    return {(half_vf)((half_words)v.lo << 23), (half_vf)((half_words)v.hi << 23)};
}

// Words of 16 bits each in a lane of 32.
struct Words {
    half_words lo, hi;
};
NK_INLINE Words words_at(const void* p) { return {low_words(p), high_words(p)}; }
NK_INLINE vf load(const bf16* p) {
    const Words w = words_at(p);
    return {(half_vf)(w.lo << 16), (half_vf)(w.hi << 16)};
}
NK_INLINE vf load(const f16* p) { return {low_from_f16(p), high_from_f16(p)}; }
NK_INLINE void store(bf16* p, vf v) { put_words(p, as_bf16(v.lo), as_bf16(v.hi)); }
NK_INLINE void store(f16* p, vf v) { put_f16(p, v.lo, v.hi); }
NK_INLINE void stream(bf16* p, vf v) { store(p, v); }
NK_INLINE void stream(f16* p, vf v) { store(p, v); }

NK_INLINE vd low_half(vf v) { return {low_doubles(v.lo), high_doubles(v.lo)}; }
NK_INLINE vd high_half(vf v) { return {low_doubles(v.hi), high_doubles(v.hi)}; }
NK_INLINE vd load_as_doubles(const float* p) {
    const half_vf v = read_half(p);
    return {low_doubles(v), high_doubles(v)};
}
NK_INLINE vf join(vd lo, vd hi) { return {as_floats(lo.lo, lo.hi), as_floats(hi.lo, hi.hi)}; }

// Tails go through a buffer, and are calls: they are rare, and inlined a third of all code.
template <class V, class T> __attribute__((noinline)) V load_tail_of(const T* p, int64_t n, V fill) {
    constexpr int kCount = sizeof(T) == 8 ? kDoubles : kFloats;
    using Computed = std::conditional_t<sizeof(T) == 8, double, float>;
    T buffer[kCount] = {};
    std::memcpy(buffer, p, size_t(n) * sizeof(T));
    Computed values[kCount], kept[kCount];
    store(values, load(buffer));
    store(kept, fill);
    std::memcpy(kept, values, size_t(n) * sizeof(Computed));
    return load(kept);
}
template <class V, class T> __attribute__((noinline)) void store_tail_of(T* p, V v, int64_t n) {
    T buffer[sizeof(T) == 8 ? kDoubles : kFloats];
    store(buffer, v);
    std::memcpy(p, buffer, size_t(n) * sizeof(T));
}
template <class T> NK_INLINE vf load_tail(const T* p, int64_t n, vf fill) { return load_tail_of(p, n, fill); }
NK_INLINE vd load_tail(const double* p, int64_t n, vd fill) { return load_tail_of(p, n, fill); }
template <class T> NK_INLINE void store_tail(T* p, vf v, int64_t n) { store_tail_of(p, v, n); }
NK_INLINE void store_tail(double* p, vd v, int64_t n) { store_tail_of(p, v, n); }

}  // namespace NK_ISA
}  // namespace normkit
