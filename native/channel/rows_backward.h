// Statistics across the batch, channels last: the backward of batch norm. The sweeps are those of channel/rows.h; where
// the statistics are constants dx = a * dz needs no sums, and one sweep makes all.
#pragma once
#include "plan/rows_plan.h"
#include "plan/sweeps.h"
#include "rows/gradient.h"
#include "rows/rows_in_one.h"
#include "rows/tiles.h"
#include "scratch.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct RowsBackward {
    using Scalar = typename Num<T>::Scalar;

    const ChannelBackward& a;
    const int64_t own, times;            // channels; rows taken as one
    const int64_t channels, rows, wide;  // of such rows
    const RowsGradient<T> tensors;
    const RowsGradientSweeps<T> sweeps;

    explicit RowsBackward(const ChannelBackward& a_)
        : a(a_), own(a_.shape.c), times(rows_in_one<T>(a_.shape.count(), a_.shape.c, a_.bits)), channels(own * times),
          rows(a_.shape.count() / times), wide(padded(channels)),
          tensors(a_, channels, prefetches(a_.shape.count(), a_.shape.c, 2 * sizeof(T))),
          sweeps(rows_gradient_sweeps<T>(a_.activation, a_.bits != nullptr, a_.residual != nullptr)) {}

    // m, scale, shift and rstd of channels [first, last); dx's constants where they depend on no sums.
    void prepare(const Columns<Scalar>& k, int64_t first, int64_t last) const {
        for (int64_t c = first; c < last; c += kLanes) {
            const D2 mean = load_head(a.stats + c, own - c), rstd = load_head(a.stats + 2 * own + c, own - c);
            const D2 weight = param_at(a.weight, c, own, 1.0);
            k.set_affine(c, mean, rstd, weight, param_at(a.bias, c, own, 0.0));
            store_as(k.rstd + c, rstd);
            if (!a.training) k.set_slope(c, mean, rstd, weight, zero2(), zero2());
        }
    }

    // dweight, dbias and the constants of dx from the sums of all blocks.
    void merge(const RowsPlan& plan, const Columns<Scalar>& k, const double* partial, int64_t first,
               int64_t last) const {
        const D2 each = both_halves(-1.0 / double(a.values()));
        for (int64_t c = first; c < last; c += kLanes) {
            const D2 mean = load_head(a.stats + c, own - c), rstd = load_head(a.stats + 2 * own + c, own - c);
            D2 total = zero2(), dot = zero2();
            for (int64_t b = 0; b < plan.blocks; ++b) {
                total = total + load2(partial + 2 * b * wide + c);
                dot = dot + load2(partial + (2 * b + 1) * wide + c);
            }
            const D2 dz_xhat = k.center(c, mean, rstd, total, dot), weight = param_at(a.weight, c, own, 1.0);
            put_param(a.dweight, c, own, dz_xhat);
            put_param(a.dbias, c, own, total);
            if (a.training) k.set_slope(c, mean, rstd, weight, weight * total * each, weight * dz_xhat * each);
        }
    }

    void run(const Parallel& parallel) const {
        const RowsPlan plan = plan_rows(rows, channels);
        const int64_t bytes = 2 * rows * channels * int64_t(sizeof(T));
        double* partial = scratch(2 * wide * plan.blocks + Columns<Scalar>::doubles(channels));
        const Columns<Scalar> k(partial + 2 * plan.blocks * wide, channels);
        k.clear_behind(channels);
        prepare(k, 0, own);
        auto repeat_all = [&] {
            if (times == 1) return;
            for (Scalar* field : {k.m, k.scale, k.shift, k.rstd, k.a, k.b, k.c}) repeat_columns(field, own, times);
        };
        repeat_all();
        const bool once = !a.training && !(tensors.stream && sizeof(T) == 2);
        const bool summed = a.training || a.dweight.data || a.dbias.data;
        const Sweep found{summed ? plan.blocks : 0, bytes, [&](int64_t b) {
                              double* of_block = partial + 2 * b * wide;
                              const auto sum = once ? sweeps.sums_written : sweeps.sums;
                              sum(tensors, k, plan.begin(b), plan.end(b), of_block, of_block + wide);
                          }};
        const int64_t merges = times > 1 ? 1 : (channels + kMergeChannels - 1) / kMergeChannels;
        const Sweep merged{summed ? merges : 0, 16 * plan.blocks * channels, [&](int64_t i) {
                               if (times == 1)
                                   return merge(plan, k, partial, i * kMergeChannels,
                                                std::min(channels, (i + 1) * kMergeChannels));
                               fold_blocks(partial, plan.blocks, wide, own, times);
                               merge({rows, 1}, k, partial, 0, own);
                               repeat_all();
                           }};
        const bool written = (a.dx || a.dresidual) && !(summed && once);
        const Sweep output{written ? plan.blocks : 0, bytes,
                           [&](int64_t b) {
                               for_chunks_backwards(
                                   plan.begin(b), plan.end(b), 2 * channels * int64_t(sizeof(T)),
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
