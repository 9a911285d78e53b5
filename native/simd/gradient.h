// The gradient with respect to the activation's input: dz = dy * activation'(z).
//
// z = bn(x) + residual is recomputed by the instructions of the forward, or its sign comes as bits. Where the slope is
// zero dz is a selected zero, not a product: an infinite dy under a closed gate stays out.
#pragma once
#include <cstdint>

#include "moments.h"
#include "simd/activation.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// The compiled forms of a gradient. kPlain and kAdded (after a residual) look the activation up at each vector; kAny, of
// the baseline, asks for bits and a residual as well.
enum class Gate { kOpen, kRelu, kBits, kPlain, kAdded, kAny };

// The constants of one channel (or one vector of channels): x - m, z and dz.
template <class T, Gate G> struct Incoming {
    using N = Num<T>;
    using V = typename N::V;

    // Whether a sweep reads bits, or else a residual, where they are given.
    static constexpr bool kMayReadBits = G == Gate::kBits || G == Gate::kAny;
    static constexpr bool kMayAdd = G == Gate::kAdded || G == Gate::kAny;
    static NK_INLINE bool reads_bits(const uint8_t* bits) {
        return G == Gate::kBits || (kMayReadBits && bits != nullptr);
    }
    template <class P> static NK_INLINE bool adds(const P* residual, const uint8_t* bits) {
        return G == Gate::kAdded || (G == Gate::kAny && residual != nullptr && bits == nullptr);
    }

    ActivationSpec spec;
    V m, scale, shift;

    Incoming(const ActivationSpec& spec_, V m_, V scale_, V shift_)
        : spec(spec_), m(m_), scale(scale_), shift(shift_) {}
    Incoming(const ActivationSpec& spec_, Affine<typename N::Scalar> f)
        : Incoming(spec_, N::set(f.m), N::set(f.scale), N::set(f.shift)) {}

    // dz. bits() and r() are asked only where by_bits and added are true.
    template <class Bits, class Residual>
    NK_INLINE V operator()(V dy, V centered, bool by_bits, Bits&& bits, bool added, Residual&& r) const {
        if (G == Gate::kOpen) return dy;
        if (kMayReadBits && by_bits)
            return select(N::mask(bits()), dy, spec.code == kLeakyRelu ? dy * N::set(spec.param) : N::set(0));
        if (G == Gate::kBits) return dy;
        V z = fma(centered, scale, shift);
        if (kMayAdd && added) z = z + r();
        if (G == Gate::kRelu) return select(greater(z, N::set(0)), dy, N::set(0));
        return Activate<T>::gradient(spec.code, spec.param, z, dy);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
