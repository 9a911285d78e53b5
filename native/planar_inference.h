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

    static constexpr int64_t kTask = 16384;  // elements: rows of one task, and the piece of a row longer than that
    static constexpr int64_t kAhead = 1024;  // elements fetched ahead

    const ChannelForward& a;
    const Shape& s;
    const T *x, *residual;
    T* y;
    const bool stream, staged;
    const int64_t pieces, rows_per_task;  // pieces of a row; rows of a task where there is one piece

    explicit PlanarInference(const ChannelForward& a_)
        : a(a_), s(a_.shape), x(static_cast<const T*>(a_.x)), residual(static_cast<const T*>(a_.residual)),
          y(static_cast<T*>(a_.y)), stream(streams(a_.shape, sizeof(T), R)), staged(stream && stages(a_.shape)),
          pieces((s.s + kTask - 1) / kTask), rows_per_task(std::max<int64_t>(1, kTask / s.s)) {}

    Columns<Scalar> constants() const {
        const Columns<Scalar> made(scratch(Columns<Scalar>::doubles(s.c)), s.c);
        for (int64_t c = 0; c < s.c; c += kLanes) {
            Statistics2 st;
            st.mean = param_at(a.mean, c, s.c, 0.0);
            st.var = param_at(a.var, c, s.c, 1.0);
            st.rstd = rstd_of(st.var, a.eps);
            write_statistics(a.stats, c, s.c, st);
            made.set_affine(c, st.mean, st.rstd, param_at(a.weight, c, s.c, 1.0), param_at(a.bias, c, s.c, 0.0));
        }
        return made;
    }

    // Elements [at, at + length) of memory row `row`, of channel c.
    NK_INLINE void write(const Columns<Scalar>& k, int64_t c, int64_t row, int64_t at, int64_t length, T* to, bool streaming,
                         Ahead ahead) const {
        const int64_t offset = row * s.s + at;
        Stretch(a.activation, Affine<Scalar>{k.m[c], k.scale[c], k.shift[c]})(
            x + offset, R ? residual + offset : nullptr, to, a.bits ? a.bits + row * s.bit_row() + at / 8 : nullptr, length,
            streaming, ahead);
    }

    void write_rows(const Columns<Scalar>& k, int64_t begin, int64_t end) const {
        alignas(64) T stage[kStage];
        const int64_t at_once = staged ? kStage / s.s : 1;
        int64_t c = begin % s.c;
        for (int64_t row = begin; row < end; row += at_once) {
            const int64_t count = std::min(at_once, end - row);
            for (int64_t u = 0; u < count; ++u) {
                if (staged) write(k, c, row + u, 0, s.s, stage + u * s.s, false, {kAhead, 0});
                else write(k, c, row, 0, s.s, y + row * s.s, stream, {kAhead, kAhead});
                if (++c == s.c) c = 0;
            }
            if (staged) stream_run(y + row * s.s, stage, count * s.s);
        }
    }

    void run(const Parallel& parallel) const {
        const Columns<Scalar> k = constants();
        const int64_t rows = s.n * s.c, tasks = pieces > 1 ? rows * pieces : (rows + rows_per_task - 1) / rows_per_task;
        parallel(tasks, s.elements() * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
            if (pieces == 1) {
                write_rows(k, begin * rows_per_task, std::min(rows, end * rows_per_task));
            } else {
                for (int64_t t = begin; t < end; ++t) {
                    const int64_t row = t / pieces, at = t % pieces * kTask;
                    write(k, row % s.c, row, at, std::min(kTask, s.s - at), y + row * s.s + at, stream, {kAhead, kAhead});
                }
            }
            if (stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
