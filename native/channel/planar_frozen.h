// Constant statistics, layout (N, C, S): the backward of batch norm in evaluation. dx = a * dz waits for no sum, so
// one pass over memory, in its own order, gives dx, dresidual and the sums of dweight and dbias together.
//
// A task is a stretch of the segments (rows, or pieces of long ones) of some samples. It adds the sums of each segment
// over its samples; they are merged in task order.
#pragma once
#include <algorithm>
#include <cstdint>

#include "channel/planar_backward.h"
#include "parallel.h"
#include "plan/planar_plan.h"
#include "planar/block.h"
#include "planar/flat.h"
#include "planar/gradient.h"
#include "planar/sums.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct PlanarFrozen {
    using Scalar = typename Num<T>::Scalar;
    using Planes = PlanarBackward<T>;

    static constexpr int64_t kTasks = 16, kTaskElements = 2048;  // so many tasks, where none gets too small for it
    static constexpr int64_t kTogether = 100;  // shorter rows are taken four together (tried: frozen-together)

    const ChannelBackward& a;
    const Shape& s;
    const Planes planes;
    const bool sums_wanted, stream, together;
    const int64_t per_row, segments;  // segments of a row, of a sample
    const int64_t samples, parts;     // how many stretches of samples there are, and parts of each sample
    const int64_t plane;              // of the sums of one stretch of samples, padded

    explicit PlanarFrozen(const ChannelBackward& a_)
        : a(a_), s(a_.shape), planes(a_), sums_wanted(a_.dweight.data || a_.dbias.data), stream(planes.tensors.stream),
          together(!stream && s.s < kTogether), per_row(std::max<int64_t>(1, (s.s + kSegment - 1) / kSegment)),
          segments(s.c * per_row), samples(std::max<int64_t>(1, std::min(kTasks, s.n / (together ? kRowsAtOnce : 1)))),
          parts(
              std::max<int64_t>(1, std::min({(kTasks + samples - 1) / samples, segments, s.c * s.s / kTaskElements}))),
          plane(segments + kLanes) {}

    // Segments [begin, end) of one or of kRowsAtOnce samples, at most kGroupMax of them.
    void block(const Columns<Scalar>& columns, int64_t n, int rows, int64_t begin, int64_t end, double* found) const {
        alignas(64) T stage_dx[kStage], stage_dz[kStage];
        const GradientTarget<T> out = planes.tensors.target((n * s.c + begin) * s.s);
        BlockSums sums(end - begin);
        const auto sweep = rows == 1 ? planes.sweeps.frozen : planes.sweeps.frozen_four;
        sweep(planes.tensors, columns, per_row, sums_wanted, n, begin, end, {stage_dx, stage_dz}, sums);
        const int64_t elements = (end - begin) * s.s;
        if (planes.tensors.staged && out.dx) stream_run(out.dx, stage_dx, elements);
        if (planes.tensors.staged && out.dz) stream_run(out.dz, stage_dz, elements);
        if (!sums_wanted) return;
        sums.close(end - begin);
        for (int64_t i = 0; begin + i < end; i += kLanes) {
            double *total = found + begin + i, *dot = total + plane;
            store_head(total, load_head(total, end - begin - i) + load2(sums.total + i), end - begin - i);
            store_head(dot, load_head(dot, end - begin - i) + load2(sums.dot + i), end - begin - i);
        }
    }

    // The constants of all channels.
    Columns<Scalar> constants(double* memory) const {
        const Columns<Scalar> made(memory, s.c);
        planes.input_constants(0, s.c, made);
        for (int64_t c = 0; c < s.c; c += kLanes)
            store_as(made.a + c, param_at(a.weight, c, s.c, 1.0) * load_head(a.stats + 2 * s.c + c, s.c - c));
        return made;
    }

    // dweight and dbias of kLanes channels from c on; found: (samples, 2, plane).
    void parameters(const Columns<Scalar>& columns, const double* found, int64_t c) const {
        double2 dz = zero2(), dot = zero2();
        for (int64_t p = 0; p < samples; ++p) {
            const double* sums = found + 2 * p * plane;
            if (per_row == 1) {
                dz = dz + load2(sums + c), dot = dot + load2(sums + plane + c);
                continue;
            }
            double t[kLanes] = {}, u[kLanes] = {};
            for (int64_t j = c * per_row; j < std::min(segments, (c + kLanes) * per_row); ++j)
                t[j / per_row - c] += sums[j], u[j / per_row - c] += sums[plane + j];
            dz = dz + load2(t), dot = dot + load2(u);
        }
        const double2 mean = load_head(a.stats + c, s.c - c), rstd = load_head(a.stats + 2 * s.c + c, s.c - c);
        put_param(a.dweight, c, s.c, columns.center(c, mean, rstd, dz, dots<T>(columns, c, dot)));
        put_param(a.dbias, c, s.c, dz);
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = 2 * s.elements() * int64_t(sizeof(T));
        const int64_t at_once = planes.tensors.staged ? std::min(kGroupMax, kStage / s.s) : kGroupMax;
        double* found = scratch(2 * samples * plane + Columns<Scalar>::doubles(s.c));
        const Columns<Scalar> columns = constants(found + 2 * samples * plane);
        parallel(samples * parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const int64_t p = t / parts, q = t % parts;
                const int64_t first = segments * q / parts, last = segments * (q + 1) / parts;
                double* sums = found + 2 * p * plane;
                for (double* to : {sums, sums + plane}) std::fill(to + first, to + last, 0.0);
                const int64_t from = s.n * p / samples, to = s.n * (p + 1) / samples;
                for (int64_t n = from, rows; n < to; n += rows) {
                    rows = together && n + kRowsAtOnce <= to ? kRowsAtOnce : 1;
                    for (int64_t j = first; j < last; j += at_once)
                        block(columns, n, int(rows), j, std::min(last, j + at_once), sums);
                }
            }
            if (stream) stream_fence();
        });
        if (sums_wanted)
            for (int64_t c = 0; c < s.c; c += kLanes) parameters(columns, found, c);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
