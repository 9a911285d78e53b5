// Smooth activations and their derivatives, made of e^-|z| alone: nothing overflows, and no two large terms cancel.
//
// In float each is a handful of roundings of its value at this very z, in relative terms also where it goes to 0: values
// within 2.5 ulp where e^-|z| is all there is, gelu within 6. What comes on top where an exponent is itself rounded (gelu's
// tanh form; gelu without fma) is less than what one rounding of z does. Derivatives: the same, of their terms where those
// cancel. NaN passes, and infinities become what they become in torch.
#pragma once
#include "simd/exponential.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// T: what is computed in, float or double.
template <class T> struct Smooth {
    using V = typename Num<T>::V;
    static NK_INLINE V set(double v) { return Num<T>::set(v); }

    // The logistic function of +-s and of -+s, s <= 0: by the sign of z.
    struct Logistic {
        V value, rest;
    };
    template <class M> static NK_INLINE Logistic logistic(V s, M positive) {
        const V e = exp_negative(s), w = set(1) / (set(1) + e);
        return {select(positive, w, e * w), select(positive, e * w, w)};
    }

    template <class M> static NK_INLINE V gated(V s, V z, M positive) {  // z times the logistic function of +-s
        const V e = exp_negative(s);
        return select(positive, z, z * e) / (set(1) + e);
    }

    // gelu's tanh form is z times the logistic function of this, which falls to 0 in T beyond kFar.
    static constexpr double kFar = std::is_same_v<T, double> ? -23.0 : -10.8;
    static constexpr double kTanhScale = 1.5957691216057308, kTanhCubic = 0.044715;  // 2 sqrt(2 / pi); of its formula
    static NK_INLINE V bent(V z) { return set(kTanhScale) * fma(set(kTanhCubic) * z * z, z, z); }

    // n is -|z|.
    static NK_INLINE V value(int code, double param, V z) {
        const V zero = set(0), one = set(1), two = set(2);
        const auto positive = greater(z, zero);
        const V n = select(positive, zero - z, z);
        switch (code) {
            case kSilu: return gated(n, z, positive);
            case kGeluTanh: return gated(bent(at_least(n, set(kFar))), z, positive);
            case kGelu: {
                const V tail = normal(n).tail;
                return z * select(positive, one - tail, tail);
            }
            case kSigmoid: {
                const V e = exp_negative(n);
                return select(positive, one, e) / (one + e);
            }
            case kTanh: {
                const V t = expm1_negative(n + n), high = t / (two + t);
                return select(positive, zero - high, high);
            }
            case kElu: return select(positive, z, set(param) * expm1_negative(n));
            case kMish: {  // z m / (m + 2) with m = (1 + e^z)^2 - 1, times e^2 for positive z
                const V e = exp_negative(n), square = e * e;
                const V m = select(positive, fma(two, e, one), fma(two, e, square));
                return z * m / (m + select(positive, two * square, two));
            }
            default: return z;
        }
    }

    static NK_INLINE V derivative(int code, double param, V z) {
        const V zero = set(0), one = set(1), two = set(2);
        const auto positive = greater(z, zero);
        const V n = select(positive, zero - z, z);
        switch (code) {
            case kSilu: {
                const Logistic s = logistic(n, positive);
                return s.value * fma(z, s.rest, one);
            }
            case kGeluTanh: {
                const V near = at_least(n, set(kFar));
                const Logistic s = logistic(bent(near), positive);
                const V slope = set(kTanhScale) * fma(set(3 * kTanhCubic) * near, near, one);
                return s.value * fma(z * slope, s.rest, one);
            }
            case kGelu: {
                const Normal<T> at = normal(n);
                return fma(z, at.density, select(positive, one - at.tail, at.tail));
            }
            case kSigmoid: {
                const Logistic s = logistic(n, positive);
                return s.value * s.rest;
            }
            case kTanh: {
                const Logistic s = logistic(n + n, positive);
                return set(4) * s.value * s.rest;
            }
            case kElu: return select(positive, one, set(param) * exp_negative(n));
            case kMish: {  // m / d + z (1 - (m / d)^2) logistic(z), the last product simplified
                const V e = exp_negative(n), square = e * e;
                const V m = select(positive, fma(two, e, one), fma(two, e, square));
                const V w = one / (m + select(positive, two * square, two));
                const V g = set(4) * select(positive, square, e) * (one + e);
                return fma(z * g, w, m) * w;
            }
            default: return one;
        }
    }
};

// Static, so that the compiler knows which registers a call leaves alone: a kernel's sums stay in theirs.
template <class T> static __attribute__((noinline)) auto smooth_value(int code, double param, typename Num<T>::V z) {
    return Smooth<T>::value(code, param, z);
}
template <class T>
static __attribute__((noinline)) auto smooth_derivative(int code, double param, typename Num<T>::V z) {
    return Smooth<T>::derivative(code, param, z);
}
#if NK_LEVEL == 2
template <class T> NK_INLINE Pairs smooth_value(int code, double param, Pairs z) {
    return {smooth_value<T>(code, param, z.even), smooth_value<T>(code, param, z.odd)};
}
template <class T> NK_INLINE Pairs smooth_derivative(int code, double param, Pairs z) {
    return {smooth_derivative<T>(code, param, z.even), smooth_derivative<T>(code, param, z.odd)};
}
#endif

}  // namespace NK_ISA
}  // namespace normkit
