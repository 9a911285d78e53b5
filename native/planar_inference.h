// Given statistics, layout (N, C, S): y is a function of x alone, so memory is walked once, in its own order.
#pragma once
#include "channel_constants.h"
#include "channel_planar.h"

namespace normkit {
namespace NK_ISA {

template <class T, Act A, bool R> struct PlanarInference {
    using N = Num<T>;
    using Scalar = typename N::Scalar;
    using Stretch = ForwardStretch<T, A, R>;

    static constexpr int64_t kTask = 16384;                // elements: rows of one task, and the piece of a longer row
    static constexpr Ahead kAhead{1024, 1024};             // elements fetched ahead
    static constexpr Ahead kAheadStaged{kAhead.input, 0};  // lines that are streamed to must not be fetched

    const ChannelForward& a;
    const Shape& s;
    const PlanarForward<T, A, R> rows;
    T* const y;
    const int64_t pieces, rows_per_task;  // pieces of a row; rows of a task where there is one piece

    explicit PlanarInference(const ChannelForward& a_)
        : a(a_), s(a_.shape), rows(a_), y(rows.y), pieces((s.s + kTask - 1) / kTask),
          rows_per_task(std::max<int64_t>(1, kTask / s.s)) {}

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
        const int64_t at_once = rows.staged ? kStage / s.s : end - begin;
        for (int64_t row = begin; row < end;) {
            const int64_t c = row % s.c, count = std::min({at_once, end - row, s.c - c});
            T* to = y + row * s.s;
            rows.write_rows(k.from(c), row, count, rows.staged ? stage : to, rows.stream && !rows.staged,
                            rows.staged ? kAheadStaged : kAhead);
            if (rows.staged) stream_run(to, stage, count * s.s);
            row += count;
        }
    }

    void write_piece(const Columns<Scalar>& k, int64_t row, int64_t at) const {
        const Rows piece{row * s.s + at, std::min(kTask, s.s - at), row * s.bit_row() + at / 8};
        rows.write(Stretch(a.activation, k, row % s.c), piece, y + piece.offset, rows.stream, kAhead);
    }

    void run(const Parallel& parallel) const {
        const Columns<Scalar> k = constants();
        const int64_t all = s.n * s.c, tasks = pieces > 1 ? all * pieces : (all + rows_per_task - 1) / rows_per_task;
        parallel(tasks, s.elements() * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
            if (pieces == 1) write_rows(k, begin * rows_per_task, std::min(all, end * rows_per_task));
            else
                for (int64_t t = begin; t < end; ++t) write_piece(k, t / pieces, t % pieces * kTask);
            if (rows.stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
