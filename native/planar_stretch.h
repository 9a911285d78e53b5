// One stretch of the second sweep, layout (N, C, S): constants of one channel in registers, or of two that share a vector.
#pragma once
#include "gradient.h"
#include "planar_block.h"

namespace normkit {
namespace NK_ISA {

template <class T> NK_INLINE bool aligned_for_stream(const T* p) {
    return (reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(T))) == 0;
}

// What a stretch fetches on its way: the input (and the output's lines) this many elements further on; 0: nothing new.
struct Ahead { int64_t input = 0, output = 0; };

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
        k.m = pick(here, m, other.m), k.scale = pick(here, scale, other.scale), k.shift = pick(here, shift, other.shift);
        return k;
    }

    NK_INLINE V before(V x, V r) const {
        V z = fma(x - m, scale, shift);
        return R ? z + r : z;
    }

    template <bool Stream> NK_INLINE void vector(const T* x, const T* r, T* y, uint8_t* bits, Ahead ahead) const {
        prefetch(x + ahead.input);
        if (!Stream && ahead.output) prefetch(y + ahead.output);
        if (R) prefetch(r + ahead.input);
        const V z = before(N::get(x, 0), R ? N::get(r, 0) : m);
        if (R && bits) put_bits<N::kCount>(bits, Activate<Row>::sign(spec.code, z));
        const V out = Activate<Row>::template value<A>(spec, z);
        Stream ? N::put_stream(y, out) : N::put(y, out);
    }

    NK_INLINE void tail(const T* x, const T* r, T* y, uint8_t* bits, int64_t n) const {
        const V z = before(N::get_tail(x, n, m), R ? N::get_tail(r, n, m) : m);
        if (R && bits) put_bits_tail<N::kCount>(bits, Activate<Row>::sign(spec.code, z), n);
        N::put_tail(y, Activate<Row>::template value<A>(spec, z), n);
    }

    template <bool Stream>
    NK_INLINE void run(const T* x, const T* r, T* y, uint8_t* bits, int64_t length, Ahead ahead) const {
        auto bits_at = [&](int64_t i) { return R && bits ? bits + i / 8 : bits; };
        int64_t i = 0;
        for (; i + N::kCount <= length; i += N::kCount) vector<Stream>(x + i, R ? r + i : r, y + i, bits_at(i), ahead);
        if (i < length) tail(x + i, R ? r + i : r, y + i, bits_at(i), length - i);
    }
};

// dx = a * dz + b * ((x - m) * rstd) + c and dresidual = dz.
template <class T, Gate G, bool R> struct BackwardStretch {
    using N = Num<InRow<T>>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    using In = Incoming<InRow<T>, G, R>;

    // Where a run's inputs lie. Values of its own: those of a class the compiler would look up again after each store.
    struct Source {
        const T *dy, *x, *r;
        const uint8_t* bits;
    };

    In in;
    V rstd, a, b, c;

    BackwardStretch(const ActivationSpec& spec, Affine<Scalar> affine, double rstd_, Slope<Scalar> f)
        : in(spec, affine), rstd(N::set(rstd_)), a(N::set(f.a)), b(N::set(f.b)), c(N::set(f.c)) {}
    BackwardStretch(const ActivationSpec& spec, const Columns<Scalar>& k, int64_t i)
        : BackwardStretch(spec, {k.m[i], k.scale[i], k.shift[i]}, k.rstd[i], {k.a[i], k.b[i], k.c[i]}) {}

    NK_INLINE BackwardStretch mixed(uint32_t bits, const BackwardStretch& other) const {
        BackwardStretch k = *this;
        const auto here = N::mask(bits);
        auto mix = [&](V& to, V there) { to = pick(here, to, there); };
        mix(k.in.m, other.in.m), mix(k.rstd, other.rstd), mix(k.a, other.a), mix(k.b, other.b), mix(k.c, other.c);
        if (G == Gate::kRelu || G == Gate::kAny) mix(k.in.scale, other.in.scale), mix(k.in.shift, other.in.shift);
        return k;
    }

    NK_INLINE V dx(V centered, V dz) const { return fma(b, centered * rstd, fma(a, dz, c)); }

    // The vector at i; outputs may be null. What lies `next` elements further on is fetched.
    template <bool Stream> NK_INLINE void vector(const Source& from, int64_t i, T* to_dx, T* to_dz, int64_t next) const {
        auto put = [](T* p, V v) { Stream ? N::put_stream(p, v) : N::put(p, v); };
        prefetch(from.x + i + next);
        prefetch(from.dy + i + next);
        const V centered = N::get(from.x + i, 0) - in.m;
        const V dz = in(N::get(from.dy + i, 0), centered, R ? N::get(from.r + i, 0) : N::set(0),
                        In::kReadsBits ? get_bits<N::kCount>(from.bits + i / 8) : 0);
        if (to_dx) put(to_dx + i, dx(centered, dz));
        if (to_dz) put(to_dz + i, dz);
    }

    NK_INLINE void tail(const Source& from, int64_t i, T* to_dx, T* to_dz, int64_t n) const {
        const V zero = N::set(0), centered = N::get_tail(from.x + i, n, in.m) - in.m;
        const V dz = in(N::get_tail(from.dy + i, n, zero), centered, R ? N::get_tail(from.r + i, n, zero) : zero,
                        In::kReadsBits ? get_bits_tail<N::kCount>(from.bits + i / 8, n) : 0);
        if (to_dx) N::put_tail(to_dx + i, dx(centered, dz), n);
        if (to_dz) N::put_tail(to_dz + i, dz, n);
    }

    template <bool Stream> NK_INLINE void run(const Source& from, T* to_dx, T* to_dz, int64_t length, int64_t next) const {
        int64_t i = 0;
        for (; i + N::kCount <= length; i += N::kCount) vector<Stream>(from, i, to_dx, to_dz, next);
        if (i < length) tail(from, i, to_dx, to_dz, length - i);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
