// One stretch of a backward's outputs, layout (N, C, S): constants of one channel in registers, or of two that share a
// vector.
#pragma once
#include <cstdint>

#include "moments.h"
#include "planar/gradient.h"
#include "simd/columns.h"
#include "simd/gradient.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// dx = a * dz + b * ((x - m) * rstd) + c and dresidual = dz.
template <class T, Gate G> struct BackwardStretch {
    using N = Num<InRow<T>>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    using In = Incoming<InRow<T>, G>;

    using Source = GradientSource<T>;

    In in;
    V rstd, a, b, c;

    BackwardStretch(const ActivationSpec& spec, Affine<Scalar> affine, double rstd_, Slope<Scalar> f)
        : in(spec, affine), rstd(N::set(rstd_)), a(N::set(f.a)), b(N::set(f.b)), c(N::set(f.c)) {}
    BackwardStretch(const ActivationSpec& spec, const Columns<Scalar>& k, int64_t i)
        : BackwardStretch(spec, {k.m[i], k.scale[i], k.shift[i]}, k.rstd[i], {k.a[i], k.b[i], k.c[i]}) {}

    NK_INLINE BackwardStretch mixed(uint32_t bits, const BackwardStretch& other) const {
        BackwardStretch k = *this;
        const auto here = N::mask(bits);
        auto mix = [&](V& to, V there) { to = select(here, to, there); };
        mix(k.in.m, other.in.m), mix(k.rstd, other.rstd), mix(k.a, other.a), mix(k.b, other.b), mix(k.c, other.c);
        if (G != Gate::kOpen && G != Gate::kBits) mix(k.in.scale, other.in.scale), mix(k.in.shift, other.in.shift);
        return k;
    }

    NK_INLINE V dx(V centered, V dz) const { return fma(b, centered * rstd, fma(a, dz, c)); }

    // The vector at i; outputs may be null. What lies `next` elements further on is fetched.
    template <bool Stream>
    NK_INLINE void vector(const Source& from, int64_t i, T* to_dx, T* to_dz, int64_t next) const {
        auto put = [](T* p, V v) { Stream ? N::put_stream(p, v) : N::put(p, v); };
        prefetch(from.x + i + next);
        prefetch(from.dy + i + next);
        const V centered = N::get(from.x + i, 0) - in.m;
        const V dz = in(
            N::get(from.dy + i, 0), centered, In::reads_bits(from.bits),
            [&]() NK_IN_PLACE { return get_bits<N::kCount>(from.bits + i / 8); }, In::adds(from.r, from.bits),
            [&]() NK_IN_PLACE { return N::get(from.r + i, 0); });
        if (to_dx) put(to_dx + i, dx(centered, dz));
        if (to_dz) put(to_dz + i, dz);
    }

    NK_INLINE void tail(const Source& from, int64_t i, T* to_dx, T* to_dz, int64_t n) const {
        const V zero = N::set(0), centered = N::get_tail(from.x + i, n, in.m) - in.m;
        const V dz = in(
            N::get_tail(from.dy + i, n, zero), centered, In::reads_bits(from.bits),
            [&]() NK_IN_PLACE { return get_bits_tail<N::kCount>(from.bits + i / 8, n); }, In::adds(from.r, from.bits),
            [&]() NK_IN_PLACE { return N::get_tail(from.r + i, n, zero); });
        if (to_dx) N::put_tail(to_dx + i, dx(centered, dz), n);
        if (to_dz) N::put_tail(to_dz + i, dz, n);
    }

    template <bool Stream>
    NK_INLINE void run(const Source& from, T* to_dx, T* to_dz, int64_t length, int64_t next) const {
        int64_t i = 0;
        for (; i + N::kCount <= length; i += N::kCount) vector<Stream>(from, i, to_dx, to_dz, next);
        if (i < length) tail(from, i, to_dx, to_dz, length - i);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
