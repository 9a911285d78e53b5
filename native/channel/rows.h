// Statistics across the batch, layout (N, S, C) seen as rows of C: batch norm with channels last, and (N, C).
//
// Rows are cut into blocks, a task each. The first sweep makes the sums of each block, a tile of channels at a time, so
// that they stay in L1; they are merged in block order; a second sweep, backwards in chunks (its first rows are the ones
// that the first sweep left in cache), writes the output. Both sweeps fetch x ahead, the second one also the lines of y
// that an ordinary store would read first.
#pragma once
#include "plan/rows_plan.h"
#include "plan/sweeps.h"
#include "rows/output.h"
#include "rows/rows_in_one.h"
#include "rows/tiles.h"
#include "scratch.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct RowsForward {
    using Scalar = typename Num<T>::Scalar;

    const ChannelForward& a;
    const int64_t own, times;            // channels; rows taken as one
    const int64_t channels, rows, wide;  // of such rows
    const T* const x;
    T* const y;
    const RowsOutput<T> out;
    const RowsWriter<T> writer;

    explicit RowsForward(const ChannelForward& a_)
        : a(a_), own(a_.shape.c), times(rows_in_one<T>(a_.shape.count(), a_.shape.c, a_.bits)), channels(own * times),
          rows(a_.shape.count() / times), wide(padded(channels)), x(static_cast<const T*>(a_.x)),
          y(static_cast<T*>(a_.y)), out(a_, channels), writer(rows_writer<T>(a_.activation, a_.residual != nullptr)) {}

    // The constants of channels [first, last) from the sums of all blocks, or from given statistics.
    void merge(const RowsPlan& plan, const double* k, const double* partial, const Columns<Scalar>& to, int64_t first,
               int64_t last) const {
        for (int64_t c = first; c < last; c += kLanes) {
            Statistics2 st;
            if (a.mean.data != nullptr) {
                st = given_statistics(a.mean, a.var, c, own, a.eps);
            } else {
                D2 sum = zero2(), squares = zero2();
                for (int64_t b = 0; b < plan.blocks; ++b) {
                    sum = sum + load2(partial + 2 * b * wide + c);
                    squares = squares + load2(partial + (2 * b + 1) * wide + c);
                }
                st = finish(sum, squares, load2(k + c), rows * times, a.eps);
            }
            write_statistics(a.stats, c, own, own, st);
            to.set_affine(c, st.mean, st.rstd, param_at(a.weight, c, own, 1.0), param_at(a.bias, c, own, 0.0));
        }
    }

    void run(const Parallel& parallel) const {
        const RowsPlan plan = plan_rows(rows, channels);
        const int64_t bytes = rows * channels * int64_t(sizeof(T));
        double* k = scratch(wide * (1 + 2 * plan.blocks) + Columns<Scalar>::doubles(channels));
        double* partial = k + wide;  // (blocks, 2, wide)
        const Columns<Scalar> constants(partial + 2 * plan.blocks * wide, channels);
        constants.clear_behind(channels);
        const bool given = a.mean.data != nullptr;
        if (!given) {
            rows_shifts(x, rows * times, own, k);
            if (times > 1) repeat_columns(k, own, times), std::fill(k + channels, k + wide, 0.0);
        }
        const Sweep sums{given ? 0 : plan.blocks, bytes, [&](int64_t b) {
                             double* found = partial + 2 * b * wide;
                             rows_sums(x, plan.begin(b), plan.end(b), channels, k, found, found + wide);
                         }};
        const int64_t merges = times > 1 ? 1 : (channels + kMergeChannels - 1) / kMergeChannels;
        const Sweep merged{merges, 16 * channels * (given ? 1 : plan.blocks), [&](int64_t i) {
                               if (times == 1)
                                   return merge(plan, k, partial, constants, i * kMergeChannels,
                                                std::min(channels, (i + 1) * kMergeChannels));
                               if (!given) fold_blocks(partial, plan.blocks, wide, own, times);
                               merge({rows, 1}, k, partial, constants, 0, own);
                               for (Scalar* field : {constants.m, constants.scale, constants.shift})
                                   repeat_columns(field, own, times);
                           }};
        const Sweep output{y == nullptr ? 0 : plan.blocks, bytes,
                           [&](int64_t b) {
                               for_chunks_backwards(
                                   plan.begin(b), plan.end(b), channels * int64_t(sizeof(T)),
                                   [&](int64_t first, int64_t last) { writer(out, constants, first, last); });
                           },
                           !given};
        in_turn(
            parallel,
            [&] {
                if (out.stream) stream_fence();
            },
            sums, merged, output);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
