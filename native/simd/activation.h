// Activations on vectors: the value, the gradient with respect to its input, and the sign bit that stands for a slope.
//
// Rule: forward and backward compute z = bn(x) + residual by the same instructions, so a recomputed sign is the sign
// that the forward saw. NaN passes through value and derivative, as in torch.
#pragma once
#include <cstdint>

#include "simd/lanes.h"
#include "simd/simd.h"
#include "simd/smooth.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// The compiled forms of a forward, each with a residual or without; kAny looks the activation up at each vector. In the
// baseline it asks for the residual, too.
enum class Act { kNone, kRelu, kAny };

// Whether a form that has a residual has it in this call.
template <Act A> NK_INLINE bool has(const void* residual) {
    return A != Act::kAny || kCommonForms || residual != nullptr;
}

template <class T> struct Activate {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;

    static NK_INLINE V between_0_and_6(V z) { return at_most(at_least(z, N::set(0)), N::set(6)); }

    static NK_INLINE V any(int code, double param, V z) {
        switch (code) {
            case kIdentity: return z;
            case kRelu: return at_least(z, N::set(0));
            case kLeakyRelu: return select(greater(z, N::set(0)), z, z * N::set(param));
            case kRelu6: return between_0_and_6(z);
            case kHardswish: return z * between_0_and_6(z + N::set(3)) * N::set(1.0 / 6.0);
            case kHardsigmoid: return between_0_and_6(z + N::set(3)) * N::set(1.0 / 6.0);
            default: return smooth_value<Scalar>(code, param, z);
        }
    }

    // dy times the derivative at z. Zero slopes select: an infinite dy under a closed gate stays out.
    static NK_INLINE V gradient(int code, double param, V z, V dy) {
        const V zero = N::set(0), three = N::set(3);
        switch (code) {
            case kIdentity: return dy;
            case kRelu: return select(greater(z, zero), dy, zero);
            case kLeakyRelu: return select(greater(z, zero), dy, dy * N::set(param));
            case kRelu6: return select(both(greater(z, zero), greater(N::set(6), z)), dy, zero);
            case kHardswish: {  // torch: 0 below -3 and at it, 1 from 3 on, z / 3 + 1 / 2 between
                V middle = dy * fma(z, N::set(1.0 / 3.0), N::set(0.5));
                return select(greater(z, N::set(-3)), select(greater(three, z), middle, dy), zero);
            }
            case kHardsigmoid: return select(both(greater(z, N::set(-3)), greater(three, z)), dy * N::set(1.0 / 6.0), zero);
            default: return dy * smooth_derivative<Scalar>(code, param, z);
        }
    }

    template <Act A> static NK_INLINE V value(const ActivationSpec& spec, V z) {
        if (A == Act::kNone) return z;
        if (A == Act::kRelu) return at_least(z, N::set(0));
        return any(spec.code, spec.param, z);
    }

    // The bit of a piecewise linear activation: 1 where its slope is 1.
    template <Act A> static NK_INLINE uint32_t sign(int code, V z) {
        auto positive = greater(z, N::set(0));
        if (A == Act::kAny && code == kRelu6) return to_bits(both(positive, greater(N::set(6), z)));
        return to_bits(positive);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
