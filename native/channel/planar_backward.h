// Statistics across the batch, layout (N, C, S): the backward of batch norm.
//
// First sweep: total = S dz and dot = S dz * (x - m) over the channel. Second sweep, from L2: dx = a * dz + b * xhat + c
// and, with a residual in front of an activation, dresidual = dz. Constant statistics: planar_frozen.h.
#pragma once
#include <cstdint>

#include "channel/planar_run.h"
#include "moments.h"
#include "parallel.h"
#include "plan/planar_plan.h"
#include "planar/flat.h"
#include "planar/gradient.h"
#include "planar/sums.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/short_sums.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct PlanarBackward {
    using Scalar = typename Num<T>::Scalar;

    const ChannelBackward& a;
    const Shape& s;
    const PlanarPlan plan;
    const PlanarGradient<T> tensors;
    const PlanarGradientSweeps<T> sweeps;
    const bool stream, staged;

    explicit PlanarBackward(const ChannelBackward& a_)
        : a(a_), s(a_.shape), plan(plan_planar(a_.shape, 2 * sizeof(T))), tensors(a_, plan.parts > 1),
          sweeps(planar_gradient_sweeps<T>(a_.activation, a_.bits != nullptr, a_.residual != nullptr)),
          stream(tensors.stream), staged(tensors.staged) {}

    double mean(int64_t c) const { return a.stats[c]; }
    double rstd(int64_t c) const { return a.stats[2 * s.c + c]; }
    Affine<Scalar> affine_of(int64_t c) const {
        return affine<Scalar>(mean(c), rstd(c), a.weight.at(c, 1.0), a.bias.at(c, 0.0));
    }

    // The constants of x - m, z and xhat of channels [first, last).
    void input_constants(int64_t first, int64_t last, const Columns<Scalar>& columns) const {
        for (int64_t i = 0; first + i < last; i += kLanes) {
            const int64_t c = first + i;
            const double2 mean2 = load_head(a.stats + c, last - c), rstd2 = load_head(a.stats + 2 * s.c + c, last - c);
            columns.set_affine(i, mean2, rstd2, param_at(a.weight, c, last, 1.0), param_at(a.bias, c, last, 0.0));
            store_as(columns.rstd + i, rstd2);
        }
    }

    // dweight and dbias of channels [first, last), and the constants of dx, from the sums.
    void output_constants(int64_t first, int64_t last, const BlockSums& sums, const Columns<Scalar>& columns) const {
        const double2 per_value = both_halves(-1.0 / double(a.values()));
        for (int64_t i = 0; first + i < last; i += kLanes) {
            const int64_t c = first + i;
            const double2 mean2 = load_head(a.stats + c, last - c), rstd2 = load_head(a.stats + 2 * s.c + c, last - c);
            const double2 dz = load2(sums.total + i), dot = dots<T>(columns, i, load2(sums.dot + i));
            const double2 dz_xhat = columns.center(i, mean2, rstd2, dz, dot);
            put_param(a.dweight, c, last, dz_xhat);
            put_param(a.dbias, c, last, dz);
            const double2 weight = param_at(a.weight, c, last, 1.0), share = weight * per_value;
            columns.set_slope(i, mean2, rstd2, weight, share * dz, share * dz_xhat);
        }
    }

    void block(int64_t first, int64_t last, int64_t next) const {
        alignas(64) double memory[Columns<Scalar>::doubles(kGroupMax)];
        const Columns<Scalar> columns(memory, kGroupMax);
        BlockSums sums(last - first);
        input_constants(first, last, columns);
        for_row_groups(s.n, [&](int64_t n, auto rows) {
            sweeps.sum_rows_of(rows)(tensors, n * s.c + first, last - first, columns, 0, sums);
        });
        sums.close(last - first);
        output_constants(first, last, sums, columns);
        if (!tensors.dx && !tensors.dresidual) return;
        alignas(64) T stage_dx[kStage], stage_dz[kStage];
        for (int64_t n = s.n - 1; n >= 0; --n) {  // the newest rows are still in cache
            const int64_t count = (last - first) * s.s;
            const GradientTarget<T> to = tensors.target((n * s.c + first) * s.s);
            const GradientTarget<T> stage{to.dx ? stage_dx : nullptr, to.dz ? stage_dz : nullptr};
            sweeps.write_rows(tensors, columns, n * s.c + first, last - first, staged ? stage : to, next);
            if (staged && to.dx) stream_run(to.dx, stage_dx, count);
            if (staged && to.dz) stream_run(to.dz, stage_dz, count);
        }
    }

    // One channel: constants of dx from its sums; writes dweight and dbias when `record`.
    Slope<Scalar> finish_channel(int64_t c, Sums found, bool record) const {
        const GradientSums sums = center<Scalar>(mean(c), rstd(c), found.sum, found.squares * rstd(c));
        if (record) {
            a.dweight.put(c, sums.dz_xhat);
            a.dbias.put(c, sums.dz);
        }
        return slope<Scalar>(mean(c), rstd(c), a.weight.at(c, 1.0), sums, a.values());
    }

    Sums segment_sums(int64_t c, int64_t begin, int64_t end) const {
        LaneSums lanes;
        sweeps.sum_segments(tensors, {affine_of(c), Scalar(rstd(c))}, plan, c, begin, end, lanes);
        Sums sums = lanes.sums();
        if (kShortProducts<T>) sums.squares = unscaled(sums.squares, double(Scalar(rstd(c))));
        return sums;
    }

    // The outputs of segments [begin, end) of one channel from its sums; dweight and dbias when `record`.
    void write_segments(int64_t c, Sums found, int64_t begin, int64_t end, bool record, int64_t next) const {
        const Slope<Scalar> slope = finish_channel(c, found, record);
        if (!tensors.dx && !tensors.dresidual) return;
        const Affine<Scalar> f = affine_of(c);
        double memory[Columns<Scalar>::doubles(1)];
        const Columns<Scalar> columns(memory, 1);
        *columns.m = f.m, *columns.scale = f.scale, *columns.shift = f.shift, *columns.rstd = Scalar(rstd(c));
        *columns.a = slope.a, *columns.b = slope.b, *columns.c = slope.c;
        sweeps.write_segments(tensors, columns, 0, plan, c, begin, end, next);
    }

    void run(const Parallel& parallel) const { run_planar(*this, parallel, 2 * s.elements() * int64_t(sizeof(T))); }
};

}  // namespace NK_ISA
}  // namespace normkit
