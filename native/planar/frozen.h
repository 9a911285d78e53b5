// Constant statistics, layout (N, C, S), one form of the backward's one sweep: dx = a * dz, dresidual = dz and the sums.
#pragma once
#include <algorithm>
#include <cstdint>

#include "plan/planar_plan.h"
#include "planar/block.h"
#include "planar/gradient.h"
#include "planar/sums.h"
#include "simd/columns.h"
#include "simd/gradient.h"
#include "simd/lanes.h"
#include "simd/repeat.h"
#include "simd/short_sums.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G> struct PlanarFrozenForm {
    using N = Num<T>;
    using V = typename N::V;
    using In = Incoming<T, G>;
    using Gradient = PlanarGradient<T>;
    using Source = GradientSource<T>;
    using Target = GradientTarget<T>;
    using Constants = Columns<typename N::Scalar>;

    static constexpr int64_t kAhead = 1024;  // elements fetched ahead (tried: frozen-one-walk)

    // Of one segment, as values of its own: what lies in a class the compiler looks up again after each store.
    struct Segment {
        In in;
        V rstd, a;
        double2 m;
        bool sums, streamed, by_bits, added;
        const T *next_dx, *next_dz;  // whose lines are fetched: those of the outputs, where they are not streamed
    };

    // Vectors of `count` elements, kLanes or a tail of less: kVectors of them `stride` elements apart.
    template <int kVectors> static NK_INLINE void step(const Segment& k, const Rows& at, const Source& from, Target to,
                                                       int64_t i, int64_t count, LaneSums& t) {
        const bool whole = count == kLanes;
        auto read = [&](const T* p, V fill) NK_IN_PLACE { return whole ? N::get(p, 0) : N::get_tail(p, count, fill); };
        auto put = [&](T* p, V v) NK_IN_PLACE {
            if (!whole) N::put_tail(p, v, count);
            else k.streamed ? N::put_stream(p, v) : N::put(p, v);
        };
        ShortProducts<kVectors> terms;
        repeat<kVectors>([&](auto u) NK_IN_PLACE {
            const int64_t here = i + u * at.stride;
            prefetch(from.dy + here + kAhead);
            prefetch(k.next_dx + here + kAhead);
            if (k.by_bits || k.added) prefetch(k.next_dz + here + kAhead);
            V x = k.in.m;
            if (G != Gate::kOpen || k.sums) prefetch(from.x + here + kAhead), x = read(from.x + here, x);
            auto signs = [&]() NK_IN_PLACE {
                const uint8_t* p = from.bits + i / 8 + u * at.bit_stride;
                return whole ? get_bits(p) : get_bits_tail(p, count);
            };
            const V dz = k.in(read(from.dy + here, N::set(0)), x - k.in.m, k.by_bits, signs, k.added,
                              [&]() NK_IN_PLACE { return read(from.r + here, N::set(0)); });
            if (to.dx) put(to.dx + here, k.a * dz);
            if (to.dz) put(to.dz + here, dz);
            if constexpr (kShortProducts<T>) return terms.template add<u>(dz, (x - k.in.m) * k.rstd);
            if (!k.sums) return;
            const double2 wide = whole && G == Gate::kOpen ? N::get_wide(from.dy + here) : widen(dz);
            if (count <= kDoubles) return t.template add_low<u>(wide.a, wide.a, widen(x).a - k.m.a);
            t.template add<u>(wide, wide, (whole ? N::get_wide(from.x + here) : widen(x)) - k.m);
        });
        if constexpr (kShortProducts<T>)
            if (k.sums) t.total0 = t.total0 + widen(terms.total()), t.dot0 = t.dot0 + widen(terms.dot());
    }

    // One run, four vectors at a time; or the short rows of kRows samples side by side.
    template <int kRows> static NK_INLINE LaneSums run(const Gradient& g, const Constants& columns, int64_t c,
                                                       const Rows& at, Target to, bool sums_wanted) {
        constexpr int64_t kStep = kRowsAtOnce * kLanes;
        const Source from = g.template source<In>(at);
        const Rows vectors{at.offset, at.length, at.bit_byte, kLanes, kLanes / 8};
        const In in(g.activation, {columns.m[c], columns.scale[c], columns.shift[c]});
        const Segment k{in,
                        N::set(columns.rstd[c]),
                        N::set(columns.a[c]),
                        widen(in.m),
                        sums_wanted,
                        kRows == 1 && g.streamable(to),
                        In::reads_bits(from.bits),
                        In::adds(from.r, from.bits),
                        to.dx && !g.stream ? to.dx : from.dy,
                        to.dz && !g.stream ? to.dz : from.dy};
        LaneSums t;
        int64_t i = 0;
        if (kRows == 1)
            for (; i + kStep <= at.length; i += kStep) step<kRowsAtOnce>(k, vectors, from, to, i, kLanes, t);
        for (; i + kLanes <= at.length; i += kLanes) step<kRows>(k, at, from, to, i, kLanes, t);
        if (i < at.length) step<kRows>(k, at, from, to, i, at.length - i, t);
        return t;
    }

    // Segments [begin, end) of kRows samples from n on, at most kGroupMax of them; staged outputs follow each other.
    template <int kRows> static void block(const Gradient& g, const Constants& columns, int64_t per_row,
                                           bool sums_wanted, int64_t n, int64_t begin, int64_t end, Target stage,
                                           BlockSums& sums) {
        const Shape& s = g.s;
        for (int64_t j = begin; j < end; ++j) {
            int64_t c = j, from = 0;
            if (per_row > 1) c = j / per_row, from = j % per_row * kSegment;
            const int64_t row = n * s.c + c, in_stage = (j - begin) * s.s;
            const Rows at{row * s.s + from, std::min(kSegment, s.s - from), row * s.bit_row() + from / 8, s.c * s.s,
                          s.c * s.bit_row()};
            Target to = g.target(at.offset);
            if (g.staged) to = {to.dx ? stage.dx + in_stage : nullptr, to.dz ? stage.dz + in_stage : nullptr};
            sums.template add<kRowsAtOnce>(j - begin, run<kRows>(g, columns, c, at, to, sums_wanted));
        }
    }
};

}  // namespace NK_ISA
}  // namespace normkit
