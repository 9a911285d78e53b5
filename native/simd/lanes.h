// Element types seen as vectors of kLanes computing lanes: float16 and bfloat16 compute as float, double as double.
//
// Rules: V computes, double2 (two vectors of double) accumulates; kLanes is the same for every element type and a multiple
// of 8, so one vector of signs is kLanes / 8 whole bytes.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

constexpr int kLanes = kFloats;

struct double2 {
    vd a, b;
};
struct mask2 {
    maskd a, b;
};

NK_INLINE double2 operator+(double2 x, double2 y) { return {x.a + y.a, x.b + y.b}; }
NK_INLINE double2 operator-(double2 x, double2 y) { return {x.a - y.a, x.b - y.b}; }
NK_INLINE double2 operator*(double2 x, double2 y) { return {x.a * y.a, x.b * y.b}; }
NK_INLINE double2 operator/(double2 x, double2 y) { return {x.a / y.a, x.b / y.b}; }
NK_INLINE double2 fma(double2 x, double2 y, double2 z) { return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)}; }
NK_INLINE mask2 greater(double2 x, double2 y) { return {greater(x.a, y.a), greater(x.b, y.b)}; }
NK_INLINE double2 select(mask2 m, double2 yes, double2 no) { return {select(m.a, yes.a, no.a), select(m.b, yes.b, no.b)}; }
NK_INLINE mask2 both(mask2 x, mask2 y) { return {both(x.a, y.a), both(x.b, y.b)}; }
NK_INLINE uint32_t to_bits(mask2 m) { return to_bits_d(m.a) | (to_bits_d(m.b) << kDoubles); }
NK_INLINE double sum_lanes(double2 v) { return sum_lanes(v.a + v.b); }
NK_INLINE double2 zero2() { return {set1(0.0), set1(0.0)}; }
NK_INLINE double2 load2(const double* p) { return {load(p), load(p + kDoubles)}; }
NK_INLINE void store2(double* p, double2 v) {
    store(p, v.a);
    store(p + kDoubles, v.b);
}
NK_INLINE double2 widen(vf v) { return {low_half(v), high_half(v)}; }
NK_INLINE double2 widen(double2 v) { return v; }
template <class T> NK_INLINE double2 load_wide(const T* p) { return widen(load(p)); }
NK_INLINE double2 load_wide(const float* p) { return {load_as_doubles(p), load_as_doubles(p + kDoubles)}; }
NK_INLINE double2 load_wide(const double* p) { return load2(p); }

// x, but not below (above) a number; NaN stays NaN.
NK_INLINE double2 at_least(double2 x, double2 least) { return select(greater(x, least), x, least); }
NK_INLINE double2 at_most(double2 x, double2 most) { return select(greater(most, x), x, most); }

// Num<T>: how elements of T become computing vectors and back. tail(n) forms touch exactly n < kLanes elements.
template <class T> struct Num;

// float, bfloat16 and float16: stored as they are, computed as float.
template <class T> struct NumFloat {
    using V = vf;
    using Scalar = float;
    using Mask = maskf;
    static constexpr int kCount = kLanes;  // elements of a V
    static NK_INLINE V set(double v) { return set1(float(v)); }
    static NK_INLINE V get_constants(const float* p) { return load(p); }
    static NK_INLINE V get(const T* p, int) { return load(p); }
    static NK_INLINE double2 get_wide(const T* p) { return load_wide(p); }
    static NK_INLINE V get_tail(const T* p, int64_t n, V fill) { return load_tail(p, n, fill); }
    static NK_INLINE void put(T* p, V v) { store(p, v); }
    static NK_INLINE void put_stream(T* p, V v) { stream(p, v); }
    static NK_INLINE void put_tail(T* p, V v, int64_t n) { store_tail(p, v, n); }
    static NK_INLINE Mask mask(uint32_t bits) { return mask_of(bits); }
};

NK_INLINE double value_of(float v) { return v; }
NK_INLINE double value_of(double v) { return v; }
NK_INLINE double value_of(bf16 v) { return to_float(v); }
NK_INLINE double value_of(f16 v) { return to_float(v); }
NK_INLINE void put_value(float& to, double v) { to = float(v); }
NK_INLINE void put_value(double& to, double v) { to = v; }
NK_INLINE void put_value(bf16& to, double v) { to = to_bf16(float(v)); }
NK_INLINE void put_value(f16& to, double v) { to = to_f16(float(v)); }

template <> struct Num<float> : NumFloat<float> {};
template <> struct Num<bf16> : NumFloat<bf16> {};
template <> struct Num<f16> : NumFloat<f16> {};

template <> struct Num<double> {
    using V = double2;
    using Scalar = double;
    using Mask = mask2;
    static constexpr int kCount = kLanes;
    static NK_INLINE V set(double v) { return {set1(v), set1(v)}; }
    static NK_INLINE V get_constants(const double* p) { return load2(p); }
    static NK_INLINE V get(const double* p, int) { return load2(p); }
    static NK_INLINE double2 get_wide(const double* p) { return load2(p); }
    static NK_INLINE V get_tail(const double* p, int64_t n, V fill) {
        if (n <= kDoubles) return {load_tail(p, n, fill.a), fill.b};
        return {load(p), load_tail(p + kDoubles, n - kDoubles, fill.b)};
    }
    static NK_INLINE void put(double* p, V v) { store2(p, v); }
    static NK_INLINE void put_stream(double* p, V v) {
        stream(p, v.a);
        stream(p + kDoubles, v.b);
    }
    static NK_INLINE void put_tail(double* p, V v, int64_t n) {
        if (n <= kDoubles) return store_tail(p, v.a, n);
        store(p, v.a);
        store_tail(p + kDoubles, v.b, n - kDoubles);
    }
    static NK_INLINE Mask mask(uint32_t bits) {
        return {mask_of_d(bits & ((1u << kDoubles) - 1u)), mask_of_d(bits >> kDoubles)};
    }
};

// v as elements of T hold it.
template <class T> NK_INLINE typename Num<T>::V rounded(typename Num<T>::V v) {
    if constexpr (sizeof(T) >= sizeof(float)) return v;
    T kept[kLanes];
    Num<T>::put(kept, v);
    return Num<T>::get(kept, 0);
}

template <class T> NK_INLINE bool aligned_for_stream(const T* p) {
    return (reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(T))) == 0;
}

// Sign bits of one vector: kCount / 8 bytes; of a tail of n elements: (n + 7) / 8 bytes.
template <int kCount>  // lane 0 is the lowest bit of the first byte
using VectorBits = std::conditional_t<kCount == 32, uint32_t, std::conditional_t<kCount == 16, uint16_t, uint8_t>>;
static_assert(kLanes == 8 || __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
template <int kCount = kLanes> NK_INLINE void put_bits(uint8_t* p, uint32_t bits) {
    const VectorBits<kCount> b = VectorBits<kCount>(bits);
    static_assert(kCount == 8 * sizeof b);
    std::memcpy(p, &b, sizeof b);
}
template <int kCount = kLanes> NK_INLINE void put_bits_tail(uint8_t* p, uint32_t bits, int64_t n) {
    bits &= (1u << n) - 1u;
    for (int i = 0; i < kCount / 8; ++i)
        if (n > 8 * i) p[i] = uint8_t(bits >> (8 * i));
}
template <int kCount = kLanes> NK_INLINE uint32_t get_bits(const uint8_t* p) {
    VectorBits<kCount> b;
    std::memcpy(&b, p, sizeof b);
    return b;
}
template <int kCount = kLanes> NK_INLINE uint32_t get_bits_tail(const uint8_t* p, int64_t n) {
    uint32_t bits = 0;
    for (int i = 0; i < kCount / 8; ++i)
        if (n > 8 * i) bits |= uint32_t(p[i]) << (8 * i);
    return bits;
}

}  // namespace NK_ISA
}  // namespace normkit
