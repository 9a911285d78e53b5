// Sums of 16-bit values in float32, a few terms at a time, before they are added in double: half the work of widening
// each term.
//
// Forward, bfloat16 alone: S x in pairs and S x^2 in fours, about zero, u = 2^-24. A bfloat16 has 8 significant bits, so
// every x^2 is exact, a pair of x is where their magnitudes are within 2^16, and four squares are where the x are within 2^3.
// So whatever is rounded comes from terms that spread as far as they are large, and needs no shift:
//   S x:   a pair errs by u |a + b| at most, the mean by u mean|x| <= u sqrt(mean^2 + var) <= 0.85e-7 max(|mean|, std).
//   S x^2: (a^2 + b^2) + (c^2 + d^2) is rounded three times, the pairs only beyond 2^3.5. With M the largest of the four
//          the worst is three of M and a small one: u (1 + 3) M^2 against a part of the variance's sum of 0.62 M^2 or
//          more: 6.5 u = 3.9e-7 of the variance, whatever the mean.
// Squares of |x| >= 2^62 overflow float32, and those of |x| < 2^-67 lose bits: sums of squares outside [2^-50, inf) are
// made again in double (in_range).
//
// Two values of float16, of 11 bits, may need 25 for the sum of their squares: up to 15 u of the variance of such a pair.
//
// Backward: S dz and S dz * xhat in fours, of pairs in eights, from xhat = (x - m) * rstd rounded twice: 7 u of the sum of
// magnitudes, of 16 u that the parameters' gradients may err, and 2^-12 (float16: 2^-9) of what dx loses when it is rounded.
#pragma once
#include <cstdint>
#include <type_traits>

#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> constexpr bool kShortSums = std::is_same_v<T, bf16>;                      // forward
template <class T> constexpr bool kShortProducts = kShortSums<T> || std::is_same_v<T, f16>;  // backward
constexpr int kShort = 4;                                                                    // terms

// sum += a + b + c + d, squares += their squares.
NK_INLINE void add_four(vf a, vf b, vf c, vf d, double2& sum, double2& squares) {
    sum = sum + widen(a + b);
    sum = sum + widen(c + d);
    squares = squares + widen(fma(b, b, a * a) + fma(d, d, c * c));
}

// S dz and S dz * xhat of up to four terms, vectors of E: even and odd ones apart.
template <int kTerms, class E = float> struct ShortProducts {
    static_assert(kTerms <= kShort, "four terms at most");
    using V = typename Num<E>::V;
    V total0, total1, dot0, dot1;
    template <int U> NK_INLINE void add(V dz, V xhat) {
        if constexpr (U == 0) total0 = dz, dot0 = dz * xhat;
        else if constexpr (U == 1) total1 = dz, dot1 = dz * xhat;
        else if constexpr (U % 2 == 0) total0 = total0 + dz, dot0 = fma(dz, xhat, dot0);
        else total1 = total1 + dz, dot1 = fma(dz, xhat, dot1);
    }
    NK_INLINE vf total() const { return folded(kTerms == 1 ? total0 : total0 + total1); }
    NK_INLINE vf dot() const { return folded(kTerms == 1 ? dot0 : dot0 + dot1); }
};

// Whether a sum of squares was made within float32's range; NaN is.
inline bool in_range(double squares) { return !(squares < 0x1p-50 || squares > 0x1p1000); }

// The same of the first n of a vector.
NK_INLINE bool in_range(double2 squares, int64_t n) {
    const double2 low = {set1(0x1p-50), set1(0x1p-50)}, high = {set1(0x1p1000), set1(0x1p1000)};
    const uint32_t valid = n >= kLanes ? ~uint32_t(0) >> (32 - kLanes) : (1u << n) - 1u;
    return (to_bits(both(greater(squares, low), greater(high, squares))) & valid) == valid;
}

// S dz * (x - m) of kLanes channels from what the sweeps of a backward make.
template <class T> double2 dots(const Columns<typename Num<T>::Scalar>& columns, int64_t i, double2 found) {
    return kShortProducts<T> ? unscaled(found, load_wide(columns.rstd + i)) : found;
}

}  // namespace NK_ISA
}  // namespace normkit
