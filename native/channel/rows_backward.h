// Statistics across the batch, channels last: the backward of batch norm. The sweeps are those of channel/rows.h; where
// the statistics are constants dx = a * dz needs no sums, and one sweep makes all.
#pragma once
#include <algorithm>
#include <cstdint>

#include "parallel.h"
#include "plan/rows_plan.h"
#include "plan/sweeps.h"
#include "rows/gradient.h"
#include "rows/rows_in_one.h"
#include "rows/tiles.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct RowsBackward {
    using Scalar = typename Num<T>::Scalar;

    const ChannelBackward& a;
    const int64_t channels, rows_merged;          // channels; rows taken as one
    const int64_t columns, rows, padded_columns;  // of such rows
    const RowsGradient<T> tensors;
    const RowsGradientSweeps<T> sweeps;

    explicit RowsBackward(const ChannelBackward& a_)
        : a(a_), channels(a_.shape.c), rows_merged(rows_in_one<T>(a_.shape.count(), a_.shape.c, a_.bits)),
          columns(channels * rows_merged), rows(a_.shape.count() / rows_merged), padded_columns(padded(columns)),
          tensors(a_, columns, prefetches(a_.shape.count(), a_.shape.c, 2 * sizeof(T))),
          sweeps(rows_gradient_sweeps<T>(a_.activation, a_.bits != nullptr, a_.residual != nullptr)) {}

    // m, scale, shift and rstd of channels [first, last); dx's constants where they depend on no sums.
    void prepare(const Columns<Scalar>& k, int64_t first, int64_t last) const {
        for (int64_t c = first; c < last; c += kLanes) {
            const double2 mean = load_head(a.stats + c, channels - c),
                     rstd = load_head(a.stats + 2 * channels + c, channels - c);
            const double2 weight = param_at(a.weight, c, channels, 1.0);
            k.set_affine(c, mean, rstd, weight, param_at(a.bias, c, channels, 0.0));
            store_as(k.rstd + c, rstd);
            if (!a.training) k.set_slope(c, mean, rstd, weight, zero2(), zero2());
        }
    }

    // dweight, dbias and the constants of dx from the sums of all blocks.
    void merge(const RowsPlan& plan, const Columns<Scalar>& k, const double* partial, int64_t first,
               int64_t last) const {
        const double2 minus_inv_count = both_halves(-1.0 / double(a.values()));
        for (int64_t c = first; c < last; c += kLanes) {
            const double2 mean = load_head(a.stats + c, channels - c),
                     rstd = load_head(a.stats + 2 * channels + c, channels - c);
            double2 total = zero2(), dot = zero2();
            for (int64_t b = 0; b < plan.blocks; ++b) {
                total = total + load2(partial + 2 * b * padded_columns + c);
                dot = dot + load2(partial + (2 * b + 1) * padded_columns + c);
            }
            const double2 dz_xhat = k.center(c, mean, rstd, total, dot), weight = param_at(a.weight, c, channels, 1.0);
            put_param(a.dweight, c, channels, dz_xhat);
            put_param(a.dbias, c, channels, total);
            if (a.training)
                k.set_slope(c, mean, rstd, weight, weight * total * minus_inv_count,
                            weight * dz_xhat * minus_inv_count);
        }
    }

    void run(const Parallel& parallel) const {
        const RowsPlan plan = plan_rows(rows, columns);
        const int64_t bytes = 2 * rows * columns * int64_t(sizeof(T));
        double* partial = scratch(2 * padded_columns * plan.blocks + Columns<Scalar>::doubles(columns));
        const Columns<Scalar> k(partial + 2 * plan.blocks * padded_columns, columns);
        k.clear_behind(columns);
        prepare(k, 0, channels);
        auto repeat_all = [&] {
            if (rows_merged == 1) return;
            for (Scalar* field : {k.m, k.scale, k.shift, k.rstd, k.a, k.b, k.c})
                repeat_columns(field, channels, rows_merged);
        };
        repeat_all();
        const bool once = !a.training && !(tensors.stream && sizeof(T) == 2);
        const bool summed = a.training || a.dweight.data || a.dbias.data;
        const Sweep found{summed ? plan.blocks : 0, bytes, [&](int64_t b) {
                              double* of_block = partial + 2 * b * padded_columns;
                              const auto sum = once ? sweeps.sums_written : sweeps.sums;
                              sum(tensors, k, plan.begin(b), plan.end(b), of_block, of_block + padded_columns);
                          }};
        const int64_t merges = rows_merged > 1 ? 1 : (columns + kMergeChannels - 1) / kMergeChannels;
        const Sweep merged{summed ? merges : 0, 16 * plan.blocks * columns, [&](int64_t i) {
                               if (rows_merged == 1)
                                   return merge(plan, k, partial, i * kMergeChannels,
                                                std::min(columns, (i + 1) * kMergeChannels));
                               fold_blocks(partial, plan.blocks, padded_columns, channels, rows_merged);
                               merge({rows, 1}, k, partial, 0, channels);
                               repeat_all();
                           }};
        const bool written = (a.dx || a.dresidual) && !(summed && once);
        const Sweep output{written ? plan.blocks : 0, bytes,
                           [&](int64_t b) {
                               for_chunks_backwards(
                                   plan.begin(b), plan.end(b), 2 * columns * int64_t(sizeof(T)),
                                   [&](int64_t first, int64_t last) { sweeps.write(tensors, k, first, last); });
                           },
                           summed};
        in_turn(
            parallel,
            [&] {
                if (tensors.stream) stream_fence();
            },
            found, merged, output);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
