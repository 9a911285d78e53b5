// The sweeps of rows/gradient.h, one form of them.
#pragma once
#include <algorithm>
#include <cstdint>

#include "rows/gradient.h"
#include "rows/tiles.h"
#include "simd/columns.h"
#include "simd/gradient.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/short_sums.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G> struct RowsGradientForms {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    using In = Incoming<T, G>;
    using Gradient = RowsGradient<T>;

    // E: as whose vectors the elements are taken.
    template <class E> static Incoming<E, G> incoming(const Gradient& g, const Columns<Scalar>& k, int64_t j) {
        return {g.activation, Num<E>::get_constants(k.m + j), Num<E>::get_constants(k.scale + j),
                Num<E>::get_constants(k.shift + j)};
    }

    // What rows below (r, j) bring, kRows of them: term(u, xv, dz) with dz after the gate.
    template <int kRows, class Read, class ReadSigns, class Term>
    static NK_INLINE void terms(const Gradient& g, const In& in, int64_t r, int64_t j, Read&& read,
                                ReadSigns&& read_signs, Term&& term) {
        const int64_t stride = g.channels, at = r * stride + j;
        const bool by_bits = In::reads_bits(g.bits), added = In::adds(g.residual, g.bits);
        const T *xp = g.x + at, *gp = g.dy + at, *rp = added ? g.residual + at : xp;
        const uint8_t* bits = by_bits ? g.bits + r * g.bit_row + j / 8 : nullptr;
        const int64_t bit_stride = g.bit_row, prefetch_distance = fetch_distance<T>(kRows * stride);
        repeat<kRows>([&](auto u) NK_IN_PLACE {
            const int64_t here = u * stride, next = here + prefetch_distance;
            prefetch(xp + next);
            prefetch(gp + next);
            if (added) prefetch(rp + next);
            const V xv = read(xp + here);
            term(u, xv,
                 in(
                     read(gp + here), xv - in.m, by_bits,
                     [&]() NK_IN_PLACE { return read_signs(bits + u * bit_stride); }, added,
                     [&]() NK_IN_PLACE { return read(rp + here); }));
        });
    }

    // total[j] = S dz, dot[j] = S dz * (x - m) over rows [begin, end), from exact products: dz may vanish where the sums
    // nearly cancel. Of 16-bit types four rows are added in float32 first. kWrites: dx = a * dz and dresidual, too.
    template <bool kWrites = false> static void sums(const Gradient& g, const Columns<Scalar>& k, int64_t begin,
                                                     int64_t end, double* total, double* dot) {
        const int64_t channels = g.channels, padded_columns = g.padded_columns;
        T *const dx = g.dx, *const dresidual = g.dresidual;
        std::fill(total, total + padded_columns, 0.0);
        std::fill(dot, dot + padded_columns, 0.0);
        for_tiles<kWriteUnroll>(begin, end, channels, [&](int64_t r, int64_t first, int64_t last, auto rows_) {
            auto column = [&](int64_t j, auto&& read, auto&& read_signs, auto&& put) {
                constexpr int kRows = decltype(rows_)::value;
                const In in = incoming<T>(g, k, j);
                double2 t = load2(total + j), d = load2(dot + j);
                const V sa = kWrites ? N::get_constants(k.a + j) : in.m;
                const int64_t stride = channels, at = r * stride + j;
                T *to = kWrites && dx ? dx + at : nullptr, *to_dz = kWrites && dresidual ? dresidual + at : nullptr;
                auto write = [&](int u, V dz) NK_IN_PLACE {
                    const int64_t here = u * stride;
                    if (to) put(to + here, sa * dz, stride);
                    if (to_dz) put(to_dz + here, dz, stride);
                };
                if constexpr (kShortProducts<T>) {
                    const V rs = N::get_constants(k.rstd + j);
                    ShortProducts<kRows> sums;
                    terms<kRows>(g, in, r, j, read, read_signs, [&](auto u, V xv, V dz) NK_IN_PLACE {
                        sums.template add<u>(dz, (xv - in.m) * rs);
                        if (kWrites) write(u, dz);
                    });
                    t = t + widen(sums.total());
                    d = d + widen(sums.dot());
                } else {
                    const double2 m = widen(in.m);
                    terms<kRows>(g, in, r, j, read, read_signs, [&](auto u, V xv, V dz_) NK_IN_PLACE {
                        const double2 dz = widen(dz_);
                        t = t + dz;
                        d = fma(dz, widen(xv) - m, d);
                        if (kWrites) write(u, dz_);
                    });
                }
                store2(total + j, t);
                store2(dot + j, d);
            };
            for_columns(
                first, last,
                [&](int64_t j) {
                    column(
                        j, [](const T* p) NK_IN_PLACE { return N::get(p, 0); },
                        [](const uint8_t* p) NK_IN_PLACE { return get_bits(p); },
                        [&](T* p, V v, int64_t next) NK_IN_PLACE {
                            if (g.stream) return N::put_stream(p, v);
                            prefetch_to_write(p + next);
                            N::put(p, v);
                        });
                },
                [&](int64_t j, int64_t n) {
                    column(
                        j, [&](const T* p) NK_IN_PLACE { return N::get_tail(p, n, N::set(0)); },
                        [&](const uint8_t* p) NK_IN_PLACE { return get_bits_tail(p, n); },
                        [&](T* p, V v, int64_t) NK_IN_PLACE { N::put_tail(p, v, n); });
                });
        });
        if constexpr (kShortProducts<T>)  // they are of xhat
            for (int64_t j = 0; j < padded_columns; j += kLanes)
                store2(dot + j, unscaled(load2(dot + j), load_wide(k.rstd + j)));
    }

    static void write(const Gradient& g, const Columns<Scalar>& k, int64_t begin, int64_t end) {
        if (g.stream) write_rows<kStreamUnroll<T>, true>(g, k, begin, end);
        else write_rows<kWriteUnroll, false>(g, k, begin, end);
    }

    template <int kTogether, bool Stream>
    static void write_rows(const Gradient& g, const Columns<Scalar>& k, int64_t begin, int64_t end) {
        const int64_t channels = g.channels;
        using W = Num<InRow<T>>;
        using Wide = typename W::V;
        for_tiles<kTogether>(begin, end, channels, [&](int64_t r, int64_t first, int64_t last, auto unroll) {
            auto column = [&](int64_t j, auto&& read, auto&& read_signs, auto&& put) {
                const auto in = incoming<InRow<T>>(g, k, j);
                const Wide rs = W::get_constants(k.rstd + j), sa = W::get_constants(k.a + j);
                const Wide sb = W::get_constants(k.b + j), sc = W::get_constants(k.c + j);
                const int64_t stride = channels, at = r * stride + j, bit_stride = g.bit_row;
                const bool by_bits = In::reads_bits(g.bits), added = In::adds(g.residual, g.bits);
                const T *xp = g.x + at, *gp = g.dy + at, *rp = added ? g.residual + at : xp;
                T *to = g.dx ? g.dx + at : nullptr, *to_dz = g.dresidual ? g.dresidual + at : nullptr;
                const uint8_t* bits = by_bits ? g.bits + r * g.bit_row + j / 8 : nullptr;
                const bool fetch = g.ahead || kWriteAhead<T> > 0;
                const int64_t next = std::max(kWriteUnroll * stride, kWriteAhead<T>);
                const int64_t next_y = std::max(stride, kWriteAhead<T>);
                repeat<unroll>([&](auto u) NK_IN_PLACE {
                    const int64_t here = u * stride;
                    if (fetch) prefetch(xp + here + next);
                    if (fetch) prefetch(gp + here + next);
                    if (!Stream && to) prefetch_to_write(to + here + next_y);
                    if (!Stream && to_dz) prefetch_to_write(to_dz + here + next_y);
                    const Wide centered = read(xp + here) - in.m;
                    const Wide dz = in(
                        read(gp + here), centered, by_bits,
                        [&]() NK_IN_PLACE { return read_signs(bits + u * bit_stride); }, added,
                        [&]() NK_IN_PLACE { return read(rp + here); });
                    if (to) put(to + here, fma(sb, centered * rs, fma(sa, dz, sc)));
                    if (to_dz) put(to_dz + here, dz);
                });
            };
            for_columns<W::kCount>(
                first, last,
                [&](int64_t j) {
                    column(
                        j, [](const T* p) NK_IN_PLACE { return W::get(p, 0); },
                        [](const uint8_t* p) NK_IN_PLACE { return get_bits<W::kCount>(p); },
                        [](T* p, Wide v) NK_IN_PLACE { Stream ? W::put_stream(p, v) : W::put(p, v); });
                },
                [&](int64_t j, int64_t n) {
                    if constexpr (Stream) return;  // whole vectors alone
                    column(
                        j, [&](const T* p) NK_IN_PLACE { return W::get_tail(p, n, W::set(0)); },
                        [&](const uint8_t* p) NK_IN_PLACE { return get_bits_tail<W::kCount>(p, n); },
                        [&](T* p, Wide v) NK_IN_PLACE { W::put_tail(p, v, n); });
                });
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
