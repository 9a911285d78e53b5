// The gradient behind the activation: dz = dy * activation'(z).
//
// z = bn(x) + residual is recomputed by the instructions of the forward, or its sign comes as bits. Where the slope is
// zero dz is a selected zero, not a product: an infinite dy under a closed gate stays out.
#pragma once
#include "activation.h"
#include "moments.h"

namespace normkit {
namespace NK_ISA {

enum class Gate { kOpen, kRelu, kBits, kAny };

inline Gate gate_of(const ActivationSpec& spec, bool bits) {
    if (spec.code == kIdentity) return Gate::kOpen;
    if (bits) return Gate::kBits;
    return spec.code == kRelu ? Gate::kRelu : Gate::kAny;
}

// The constants of one channel (or one vector of channels): x - m, z and dz.
template <class T, Gate G, bool R> struct Incoming {
    using N = Num<T>;
    using V = typename N::V;
    static constexpr bool kReadsBits = G == Gate::kBits;

    ActivationSpec spec;
    V m, scale, shift;

    Incoming(const ActivationSpec& spec_, V m_, V scale_, V shift_) : spec(spec_), m(m_), scale(scale_), shift(shift_) {}
    Incoming(const ActivationSpec& spec_, Affine<typename N::Scalar> f)
        : Incoming(spec_, N::set(f.m), N::set(f.scale), N::set(f.shift)) {}

    NK_INLINE V operator()(V dy, V centered, V r, uint32_t bits) const {
        if (G == Gate::kOpen) return dy;
        if (G == Gate::kBits)
            return pick(N::mask(bits), dy, spec.code == kLeakyRelu ? dy * N::set(spec.param) : N::set(0));
        V z = fma(centered, scale, shift);
        if (R) z = z + r;
        if (G == Gate::kRelu) return pick(above(z, N::set(0)), dy, N::set(0));
        return Activate<T>::gradient(spec.code, spec.param, z, dy);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
