// The sweeps of planar/gradient.h, one form of them.
#pragma once
#include <cstdint>

#include "plan/planar_plan.h"
#include "planar/backward_stretch.h"
#include "planar/block.h"
#include "planar/flat.h"
#include "planar/gradient.h"
#include "planar/gradient_sums.h"
#include "planar/sums.h"
#include "simd/columns.h"
#include "simd/gradient.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G> struct PlanarGradientForms {
    using Sums = PlanarGradientSums<T, G>;
    using Stretch = BackwardStretch<T, G>;
    using Gradient = PlanarGradient<T>;
    using Target = GradientTarget<T>;
    using Scalar = typename Num<T>::Scalar;
    using Constants = Columns<Scalar>;
    static constexpr int kVector = Stretch::N::kCount;

    template <int kRows> static void sum_rows(const Gradient& g, int64_t row, int64_t count, const Constants& k,
                                              int64_t from, BlockSums& sums) {
        const Shape& s = g.s;
        const Sums input{g};
        Rows at{row * s.s, s.s, row * s.bit_row(), s.c * s.s, s.c * s.bit_row()};
        for (int64_t i = 0; i < count; ++i) {
            LaneSums lanes;
            const typename Sums::In in(g.activation, {k.m[from + i], k.scale[from + i], k.shift[from + i]});
            const auto rstd = Sums::N::set(k.rstd[from + i]);
            if constexpr (kShortProducts<T> && kRows == 1) input.add_run(in, rstd, at, lanes);
            else input.template add_rows<kRows>(in, rstd, at, lanes);
            sums.add<kRows>(i, lanes);
            at.offset += s.s, at.bit_byte += s.bit_row();
        }
    }

    static void sum_segments(const Gradient& g, const GradientInput<Scalar>& k, const PlanarPlan& plan, int64_t c,
                             int64_t begin, int64_t end, LaneSums& sums) {
        const Sums input{g};
        const typename Sums::In in(g.activation, k.affine);
        LaneSums lanes;
        for (int64_t i = begin; i < end; ++i)
            input.add_run(in, Sums::N::set(k.rstd), segment_at(g.s, plan, c, i), lanes);
        sums = lanes;
    }

    static NK_INLINE void write_run(const Gradient& g, const Stretch& k, const Rows& at, Target to, int64_t next) {
        const GradientSource<T> from = g.template source<typename Stretch::In>(at);
        g.streamable(to) ? k.template run<true>(from, to.dx, to.dz, at.length, next)
                         : k.template run<false>(from, to.dx, to.dz, at.length, next);
    }

    static void write_rows(const Gradient& g, const Constants& columns, int64_t row, int64_t count, Target to,
                           int64_t next) {
        const Shape& s = g.s;
        Rows at{row * s.s, s.s, row * s.bit_row()};
        if constexpr (G != Gate::kBits) {
            const GradientSource<T> from = g.template source<typename Stretch::In>(at);
            const bool flat = kVector <= s.s && s.s < kShortRow && (!g.stream || g.staged);
            if (flat && !from.bits && to.dx && !to.dz) {
                T* const into = to.dx;
                return for_flat<kVector>(
                    count, s.s, up_to_aligned(into),
                    [&](int64_t i) NK_IN_PLACE { return Stretch(g.activation, columns, i); },
                    [&](const Stretch& k, int64_t i)
                        NK_IN_PLACE { k.template vector<false>(from, i, into, nullptr, next); },
                    [&](const Stretch& k, int64_t i, int64_t n) NK_IN_PLACE { k.tail(from, i, into, nullptr, n); });
            }
        }
        for (int64_t i = 0; i < count; ++i) {
            write_run(g, Stretch(g.activation, columns, i), at, to, next);
            at.offset += s.s, at.bit_byte += s.bit_row();
            if (to.dx) to.dx += s.s;
            if (to.dz) to.dz += s.s;
        }
    }

    static void write_segments(const Gradient& g, const Constants& columns, int64_t i, const PlanarPlan& plan,
                               int64_t c, int64_t begin, int64_t end, int64_t next) {
        const Stretch k(g.activation, columns, i);
        for (int64_t j = end - 1; j >= begin; --j) {
            const Rows at = segment_at(g.s, plan, c, j);
            write_run(g, k, at, g.target(at.offset), next);
        }
    }
};

}  // namespace NK_ISA
}  // namespace normkit
