// Given statistics, layout (N, C, S): y is a function of x alone, so one pass over memory does, in its own order.
#pragma once
#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "plan/planar_plan.h"
#include "planar/flat.h"
#include "planar/output.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct PlanarInference {
    using Scalar = typename Num<T>::Scalar;

    static constexpr int64_t kTask = kSegment;  // elements: rows of one task, and the piece of a longer row
    // elements of the input fetched ahead (tried: inference-order, inference-no-fetch, inference-fetch-output)
    static constexpr int64_t kAhead = 1024;

    const ChannelForward& a;
    const Shape& s;
    const PlanarOutput<T> out;
    const PlanarWriters<T> writers;
    const int64_t pieces, rows_per_task;  // pieces of a row; rows of a task where there is one piece

    explicit PlanarInference(const ChannelForward& a_)
        : a(a_), s(a_.shape), out(a_), writers(planar_writers<T>(a_.activation, a_.residual != nullptr)),
          pieces((s.s + kTask - 1) / kTask), rows_per_task(std::max<int64_t>(1, kTask / s.s)) {}

    Columns<Scalar> constants() const {
        const Columns<Scalar> made(scratch(Columns<Scalar>::doubles(s.c)), s.c);
        for (int64_t c = 0; c < s.c; c += kLanes) {
            const Statistics2 st = given_statistics(a.mean, a.var, c, s.c, a.eps);
            write_statistics(a.stats, c, s.c, s.c, st);
            made.set_affine(c, st.mean, st.rstd, param_at(a.weight, c, s.c, 1.0), param_at(a.bias, c, s.c, 0.0));
        }
        return made;
    }

    // Memory rows [begin, end), several channels of one sample at a time.
    void write_rows(const Columns<Scalar>& k, int64_t begin, int64_t end) const {
        alignas(64) T stage[kStage];
        const int64_t at_once = out.staged ? kStage / s.s : end - begin;
        for (int64_t row = begin; row < end;) {
            const int64_t c = row % s.c, count = std::min({at_once, end - row, s.c - c});
            T* to = out.y + row * s.s;
            writers.rows(out, k.from(c), row, count, out.staged ? stage : to, out.stream && !out.staged, kAhead);
            if (out.staged) stream_run(to, stage, count * s.s);
            row += count;
        }
    }

    void run(const Parallel& parallel) const {
        const Columns<Scalar> k = constants();
        const int64_t all = s.n * s.c, tasks = pieces > 1 ? all * pieces : (all + rows_per_task - 1) / rows_per_task;
        parallel(tasks, s.elements() * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
            if (pieces == 1) write_rows(k, begin * rows_per_task, std::min(all, end * rows_per_task));
            else
                for (int64_t t = begin; t < end; ++t) {
                    const int64_t row = t / pieces, piece = t % pieces;
                    writers.segments(out, k, row % s.c, row_of(pieces), row, piece, piece + 1, out.stream, kAhead);
                }
            if (out.stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
