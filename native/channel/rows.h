// Statistics across the batch, layout (N, S, C) seen as rows of C: batch norm with channels last, and (N, C).
//
// Rows are cut into blocks, a task each. The first sweep makes the sums of each block, a tile of channels at a time, so
// that they stay in L1; they are merged in block order; a second sweep, backwards in chunks (its first rows are the ones
// that the first sweep left in cache), writes the output. Both sweeps fetch x ahead, the second one also the lines of y
// that an ordinary store would read first. Given statistics, one sweep forwards does.
#pragma once
#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "plan/rows_plan.h"
#include "plan/sweeps.h"
#include "rows/output.h"
#include "rows/rows_in_one.h"
#include "rows/tiles.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct RowsForward {
    using Scalar = typename Num<T>::Scalar;

    const ChannelForward& a;
    const int64_t channels, rows_merged;          // channels; rows taken as one
    const int64_t columns, rows, padded_columns;  // of such rows
    const T* const x;
    T* const y;
    const RowsOutput<T> out;
    const RowsWriter<T> writer;

    explicit RowsForward(const ChannelForward& a_)
        : a(a_), channels(a_.shape.c), rows_merged(rows_in_one<T>(a_.shape.count(), a_.shape.c, a_.bits)),
          columns(channels * rows_merged), rows(a_.shape.count() / rows_merged), padded_columns(padded(columns)),
          x(static_cast<const T*>(a_.x)), y(static_cast<T*>(a_.y)), out(a_, columns),
          writer(rows_writer<T>(a_.activation, a_.residual != nullptr)) {}

    // The constants of channels [first, last) from the sums of all blocks, or from given statistics.
    void merge(const RowsPlan& plan, const double* k, const double* partial, const Columns<Scalar>& to, int64_t first,
               int64_t last) const {
        for (int64_t c = first; c < last; c += kLanes) {
            Statistics2 st;
            if (a.mean.data != nullptr) {
                st = given_statistics(a.mean, a.var, c, channels, a.eps);
            } else {
                double2 sum = zero2(), squares = zero2();
                for (int64_t b = 0; b < plan.blocks; ++b) {
                    sum = sum + load2(partial + 2 * b * padded_columns + c);
                    squares = squares + load2(partial + (2 * b + 1) * padded_columns + c);
                }
                st = finish(sum, squares, load2(k + c), rows * rows_merged, a.eps);
            }
            write_statistics(a.stats, c, channels, channels, st);
            to.set_affine(c, st.mean, st.rstd, param_at(a.weight, c, channels, 1.0),
                          param_at(a.bias, c, channels, 0.0));
        }
    }

    void run(const Parallel& parallel) const {
        const RowsPlan plan = plan_rows(rows, columns);
        const int64_t bytes = rows * columns * int64_t(sizeof(T));
        double* k = scratch(padded_columns * (1 + 2 * plan.blocks) + Columns<Scalar>::doubles(columns));
        double* partial = k + padded_columns;  // (blocks, 2, padded_columns)
        const Columns<Scalar> constants(partial + 2 * plan.blocks * padded_columns, columns);
        constants.clear_behind(columns);
        const bool given = a.mean.data != nullptr;
        if (!given) {
            rows_shifts(x, rows * rows_merged, channels, k);
            if (rows_merged > 1)
                repeat_columns(k, channels, rows_merged), std::fill(k + columns, k + padded_columns, 0.0);
        }
        const Sweep sums{given ? 0 : plan.blocks, bytes, [&](int64_t b) {
                             double* found = partial + 2 * b * padded_columns;
                             rows_sums(x, plan.begin(b), plan.end(b), columns, k, found, found + padded_columns);
                         }};
        const int64_t merges = rows_merged > 1 ? 1 : (columns + kMergeChannels - 1) / kMergeChannels;
        const Sweep merged{merges, 16 * columns * (given ? 1 : plan.blocks), [&](int64_t i) {
                               if (rows_merged == 1)
                                   return merge(plan, k, partial, constants, i * kMergeChannels,
                                                std::min(columns, (i + 1) * kMergeChannels));
                               if (!given) fold_blocks(partial, plan.blocks, padded_columns, channels, rows_merged);
                               merge({rows, 1}, k, partial, constants, 0, channels);
                               for (Scalar* field : {constants.m, constants.scale, constants.shift})
                                   repeat_columns(field, channels, rows_merged);
                           }};
        const Sweep output{y == nullptr ? 0 : plan.blocks, bytes,
                           [&](int64_t b) {
                               // nothing of x is in cache from before: forwards (tried: inference-forwards)
                               if (given) return writer(out, constants, plan.begin(b), plan.end(b));
                               for_chunks_backwards(
                                   plan.begin(b), plan.end(b), columns * int64_t(sizeof(T)),
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
