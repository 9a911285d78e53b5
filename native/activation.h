// Activations on vectors: the value, the derivative, and the sign bit that stands for the derivative.
//
// Rule: forward and backward compute z = bn(x) + residual by the same instructions, so a recomputed sign is the sign
// that the forward saw. NaN passes through value and derivative, as in torch.
#pragma once
#include <cmath>

#include "lanes.h"

namespace normkit {
namespace NK_ISA {

// The three compiled forms of a kernel; kAny looks the code up at each vector.
enum class Act { kNone, kRelu, kAny };

NK_INLINE D2 exp_of(D2 x) {
    double t[2 * kDoubles];
    store2(t, x);
    for (double& v : t) v = std::exp(v);
    return load2(t);
}

// exp for floats, computed in double per half: 2^k * p(r), |r| <= ln2/2, degree 7: below 1e-8 relative, so the float
// result is rounded about once. Inputs are clamped where float exp saturates anyway.
NK_INLINE vd exp_half(vd x) {
    const vd top = set1(700.0), bottom = set1(-700.0), shifter = set1(6755399441055744.0);  // 1.5 * 2^52
    vd clamped = pick(above(x, top), pick(above(x, x), x, top), x);   // above(NaN, NaN) holds: NaN stays
    clamped = pick(above(bottom, clamped), pick(above(clamped, clamped), clamped, bottom), clamped);
    vd t = fma(clamped, set1(1.4426950408889634), shifter);
    vd k = t - shifter;
    vd r = fma(k, set1(-0.6931471805599453), clamped);
    vd p = set1(1.0 / 5040.0);
    const double c[] = {1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0};
    for (double v : c) p = fma(p, r, set1(v));
    int64_t bits[kDoubles];
    double scale[kDoubles];
    std::memcpy(bits, &t, sizeof bits);
    for (int i = 0; i < kDoubles; ++i) {  // the low bits of t hold k
        int64_t e = int64_t(uint64_t(bits[i]) << 52) + (int64_t(1023) << 52);
        std::memcpy(&scale[i], &e, 8);
    }
    return p * load(scale);
}
NK_INLINE vf exp_of(vf x) { return join(exp_half(low_half(x)), exp_half(high_half(x))); }

template <class T> struct Activate {
    using N = Num<T>;
    using V = typename N::V;

    static NK_INLINE V sigmoid(V z) { return N::set(1) / (N::set(1) + exp_of(N::set(0) - z)); }

    static NK_INLINE V any(int code, double param, V z) {
        const V zero = N::set(0);
        switch (code) {
            case kRelu: return pick(above(z, zero), z, zero);
            case kLeakyRelu: return pick(above(z, zero), z, z * N::set(param));
            case kRelu6: {
                V low = pick(above(z, zero), z, zero);
                return pick(above(N::set(6), low), low, N::set(6));
            }
            case kSilu: return z * sigmoid(z);
            case kHardswish: {
                V inner = z + N::set(3);
                V low = pick(above(inner, zero), inner, zero);
                V capped = pick(above(N::set(6), low), low, N::set(6));
                return z * capped * N::set(1.0 / 6.0);
            }
            default: return z;
        }
    }

    static NK_INLINE V derivative(int code, double param, V z) {
        const V zero = N::set(0), one = N::set(1);
        switch (code) {
            case kRelu: return pick(above(z, zero), one, zero);
            case kLeakyRelu: return pick(above(z, zero), one, N::set(param));
            case kRelu6: return pick(above(z, zero), pick(above(N::set(6), z), one, zero), zero);
            case kSilu: {
                V s = sigmoid(z);
                return s * (one + z * (one - s));
            }
            case kHardswish: {  // torch: 0 below -3 and at it, 1 from 3 on, z / 3 + 1 / 2 between
                V middle = fma(z, N::set(1.0 / 3.0), N::set(0.5));
                V right = pick(above(N::set(3), z), middle, one);
                return pick(above(z, N::set(-3)), right, zero);
            }
            default: return one;
        }
    }

    template <Act A> static NK_INLINE V value(const ActivationSpec& spec, V z) {
        if (A == Act::kNone) return z;
        if (A == Act::kRelu) return pick(above(z, N::set(0)), z, N::set(0));
        return any(spec.code, spec.param, z);
    }

    // The bit of a piecewise linear activation: 1 where its slope is 1.
    static NK_INLINE uint32_t sign(int code, V z) {
        auto positive = above(z, N::set(0));
        if (code == kRelu6) return to_bits(both(positive, above(N::set(6), z)));
        return to_bits(positive);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
