// The sums of the backward over rows and runs, layout (N, C, S).
#pragma once
#include <cstdint>

#include "planar/block.h"
#include "planar/gradient.h"
#include "planar/sums.h"
#include "simd/gradient.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/repeat.h"
#include "simd/short_sums.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G> struct PlanarGradientSums {
    using N = Num<InRow<T>>;
    using V = typename N::V;
    using In = Incoming<InRow<T>, G>;

    const PlanarGradient<T>& tensors;

    // Adds S dz and S dz * (x - m) of kRows rows; `stride` and `bit_stride` lie between them. The lines that the second
    // sweep writes are fetched on the way. Exact products: dz may vanish where the sums nearly cancel.
    template <int kRows> NK_INLINE void add_rows(const In& in, V rstd, const Rows& at, LaneSums& to) const {
        if constexpr (kShortProducts<T>) return add_short_rows<kRows>(in, rstd, at, to);
        else add_wide_rows<kRows>(in, at, to);
    }
    template <int kRows> NK_INLINE void add_wide_rows(const In& in, const Rows& at, LaneSums& to) const {
        const V zero = N::set(0);
        const double2 m = widen(in.m);
        const GradientSource<T> from = tensors.template source<In>(at);
        const T *output = tensors.next_dx + at.offset, *output_dz = tensors.next_dz + at.offset;
        const bool by_bits = In::reads_bits(from.bits), added = In::adds(from.r, from.bits);
        LaneSums t = to;
        int64_t i = 0;
        for (; i + kLanes <= at.length; i += kLanes)
            repeat<kRows>([&](auto u) NK_IN_PLACE {
                const int64_t here = u * at.stride + i;
                prefetch(output + here);
                if (added || by_bits) prefetch(output_dz + here);
                const double2 centered = N::get_wide(from.x + here) - m;
                if constexpr (G == Gate::kOpen) {
                    const double2 dz = N::get_wide(from.dy + here);
                    return t.template add<u>(dz, dz, centered);
                }
                const double2 dz = widen(in(
                    N::get(from.dy + here, 0), N::get(from.x + here, 0) - in.m, by_bits,
                    [&]() NK_IN_PLACE { return get_bits(from.bits + u * at.bit_stride + i / 8); }, added,
                    [&]() NK_IN_PLACE { return N::get(from.r + here, 0); }));
                t.template add<u>(dz, dz, centered);
            });
        if (const int64_t left = at.length - i; left > 0)  // the tail's dy is zero: its lanes add nothing
            repeat<kRows>([&](auto u) NK_IN_PLACE {
                const int64_t here = u * at.stride + i;
                const V xv = N::get_tail(from.x + here, left, in.m);
                const V dz = in(
                    N::get_tail(from.dy + here, left, zero), xv - in.m, by_bits,
                    [&]() NK_IN_PLACE { return get_bits_tail(from.bits + u * at.bit_stride + i / 8, left); }, added,
                    [&]() NK_IN_PLACE { return N::get_tail(from.r + here, left, zero); });
                if (left <= kDoubles) return t.template add_low<u>(widen(dz).a, widen(dz).a, widen(xv).a - m.a);
                t.template add<u>(widen(dz), widen(dz), widen(xv) - m);
            });
        to = t;
    }

    // The same of 16-bit types, the rows added in float32 first: S dz and S dz * xhat of `count` elements of each row, `last`
    // of the last one.
    template <int kRows> NK_INLINE void add_short(const In& in, V rstd, const Rows& at, int64_t i, int64_t count,
                                                  int64_t last, LaneSums& t) const {
        const GradientSource<T> from = tensors.template source<In>(at);
        const bool by_bits = In::reads_bits(from.bits), added = In::adds(from.r, from.bits);
        ShortProducts<kRows, InRow<T>> sums;
        repeat<kRows>([&](auto u) NK_IN_PLACE {
            const int64_t here = u * at.stride + i, n = u == kRows - 1 ? last : count;
            const bool whole = n == N::kCount;
            auto read = [&](const T* p, V fill) NK_IN_PLACE { return whole ? N::get(p, 0) : N::get_tail(p, n, fill); };
            auto signs = [&]() NK_IN_PLACE {
                const uint8_t* p = from.bits + u * at.bit_stride + i / 8;
                return whole ? get_bits<N::kCount>(p) : get_bits_tail<N::kCount>(p, n);
            };
            const V centered = read(from.x + here, in.m) - in.m;
            const V dz = in(read(from.dy + here, N::set(0)), centered, by_bits, signs, added,
                            [&]() NK_IN_PLACE { return read(from.r + here, N::set(0)); });
            sums.template add<u>(dz, centered * rstd);
        });
        t.total0 = t.total0 + widen(sums.total());
        t.dot0 = t.dot0 + widen(sums.dot());
    }
    template <int kRows> NK_INLINE void add_short_rows(const In& in, V rstd, const Rows& at, LaneSums& to) const {
        const T *output = tensors.next_dx + at.offset, *output_dz = tensors.next_dz + at.offset;
        const bool two = (In::kMayReadBits && tensors.bits) || (In::kMayAdd && tensors.residual);
        LaneSums t = to;
        int64_t i = 0;
        for (; i + N::kCount <= at.length; i += N::kCount) {
            repeat<kRows>([&](auto u) NK_IN_PLACE {
                prefetch(output + u * at.stride + i);
                if (two) prefetch(output_dz + u * at.stride + i);
            });
            add_short<kRows>(in, rstd, at, i, N::kCount, N::kCount, t);
        }
        if (i < at.length) add_short<kRows>(in, rstd, at, i, at.length - i, at.length - i, t);
        to = t;
    }

    // The same of one run: four vectors at a time, as if they were rows.
    NK_INLINE void add_run(const In& in, V rstd, const Rows& run, LaneSums& to) const {
        constexpr int64_t kVector = N::kCount, kStep = kRowsAtOnce * kVector;
        int64_t i = 0;
        for (; i + kStep <= run.length; i += kStep)
            add_rows<kRowsAtOnce>(in, rstd, {run.offset + i, kVector, run.bit_byte + i / 8, kVector, kVector / 8}, to);
        const Rows rest{run.offset + i, run.length - i, run.bit_byte + i / 8, kVector, kVector / 8};
        if constexpr (kShortProducts<T>) {
            switch ((rest.length + kVector - 1) / kVector) {
                case 1: return add_short<1>(in, rstd, rest, 0, kVector, rest.length, to);
                case 2: return add_short<2>(in, rstd, rest, 0, kVector, rest.length - kVector, to);
                case 3: return add_short<3>(in, rstd, rest, 0, kVector, rest.length - 2 * kVector, to);
                case 4: return add_short<4>(in, rstd, rest, 0, kVector, rest.length - 3 * kVector, to);
            }
        } else if (i < run.length) add_rows<1>(in, rstd, rest, to);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
