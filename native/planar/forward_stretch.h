// One stretch of a forward's output, layout (N, C, S): constants of one channel in registers, or of two that share a vector.
#pragma once
#include <cstdint>

#include "moments.h"
#include "planar/output.h"
#include "simd/activation.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// y = act(fma(x - m, scale, shift) + residual) with the constants of one channel.
template <class T, Act A, bool R> struct ForwardStretch {
    using Row = InRow<T>;
    using N = Num<Row>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    ActivationSpec spec;
    V m, scale, shift;

    ForwardStretch(const ActivationSpec& spec_, Affine<Scalar> f)
        : spec(spec_), m(N::set(f.m)), scale(N::set(f.scale)), shift(N::set(f.shift)) {}
    ForwardStretch(const ActivationSpec& spec_, const Columns<Scalar>& k, int64_t i)
        : ForwardStretch(spec_, {k.m[i], k.scale[i], k.shift[i]}) {}

    // This channel's constants in the lanes of `bits`, the other's elsewhere.
    NK_INLINE ForwardStretch mixed(uint32_t bits, const ForwardStretch& other) const {
        ForwardStretch k = *this;
        const auto here = N::mask(bits);
        k.m = select(here, m, other.m), k.scale = select(here, scale, other.scale),
        k.shift = select(here, shift, other.shift);
        return k;
    }

    static NK_INLINE bool adds(const T* r) { return R && has<A>(r); }
    static NK_INLINE const T* after(const T* r, int64_t i) { return adds(r) ? r + i : r; }

    // The input `ahead` elements further on is fetched.
    template <bool Stream> NK_INLINE void vector(const T* x, const T* r, T* y, uint8_t* bits, int64_t ahead) const {
        prefetch(x + ahead);
        if (adds(r)) prefetch(r + ahead);
        V z = fma(N::get(x, 0) - m, scale, shift);
        if (adds(r)) z = z + N::get(r, 0);
        if (R && bits) put_bits<N::kCount>(bits, Activate<Row>::template sign<A>(spec.code, z));
        const V out = Activate<Row>::template value<A>(spec, z);
        Stream ? N::put_stream(y, out) : N::put(y, out);
    }

    NK_INLINE void tail(const T* x, const T* r, T* y, uint8_t* bits, int64_t n) const {
        V z = fma(N::get_tail(x, n, m) - m, scale, shift);
        if (adds(r)) z = z + N::get_tail(r, n, m);
        if (R && bits) put_bits_tail<N::kCount>(bits, Activate<Row>::template sign<A>(spec.code, z), n);
        N::put_tail(y, Activate<Row>::template value<A>(spec, z), n);
    }

    template <bool Stream>
    NK_INLINE void run(const T* x, const T* r, T* y, uint8_t* bits, int64_t length, int64_t ahead) const {
        auto bits_at = [&](int64_t i) { return R && bits ? bits + i / 8 : bits; };
        int64_t i = 0;
        for (; i + N::kCount <= length; i += N::kCount) vector<Stream>(x + i, after(r, i), y + i, bits_at(i), ahead);
        if (i < length) tail(x + i, after(r, i), y + i, bits_at(i), length - i);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
