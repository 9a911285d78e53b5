// Statistics within a sample, channels last: the backward of group norm and instance norm. Samples are cut and taken
// together as in group/rows.h; the sums of each sample and channel are kept for dweight and dbias.
#pragma once
#include <algorithm>
#include <cstdint>

#include "group/samples.h"
#include "moments.h"
#include "parallel.h"
#include "plan/relay.h"
#include "plan/rows_plan.h"
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

template <class T> struct GroupRowsBackward {
    using Scalar = typename Num<T>::Scalar;
    const int64_t channels, rows_merged;
    const GroupBackward a;
    const Shape& s;
    const SamplePlan plan;
    const RowsGradient<T> tensors;
    const RowsGradientSweeps<T> sweeps;
    const int64_t padded_columns, width;
    double* channel = nullptr;  // (N, 2, padded_columns): S dz and S dz * xhat of each sample and channel

    explicit GroupRowsBackward(const GroupBackward& a_)
        : channels(a_.shape.c), rows_merged(rows_in_one<T>(a_.shape.s, a_.shape.c, a_.bits)),
          a(with_rows_in_one(a_, rows_merged)), s(a.shape), plan(plan_samples(s, 2 * sizeof(T))),
          tensors(a, s.c, plan.rows.blocks > 1),
          sweeps(rows_gradient_sweeps<T>(a.activation, a.bits != nullptr, a.residual != nullptr)),
          padded_columns(padded(s.c)), width(channels / a.groups) {}

    // A sample's memory: sums (blocks, 2, padded_columns), constants.
    int64_t per_sample() const { return 2 * plan.rows.blocks * padded_columns + GroupColumns<Scalar>::doubles(s.c); }
    GroupColumns<Scalar> columns_of(double* memory) const {
        return {memory + 2 * plan.rows.blocks * padded_columns, s.c};
    }

    void prepare(int64_t n, double* memory) const {
        const GroupColumns<Scalar> out = columns_of(memory);
        const double *mean = a.stats + n * a.groups, *rstd = mean + 2 * s.n * a.groups;
        for (int64_t g = 0; g < a.groups; ++g) {
            std::fill(out.mean + g * width, out.mean + (g + 1) * width, mean[g]);
            std::fill(out.rstd + g * width, out.rstd + (g + 1) * width, rstd[g]);
        }
        out.set_affine(a.weight, a.bias, channels, rows_merged);
    }
    void sums(int64_t n, int64_t b, double* memory) const {
        double* found = memory + 2 * b * padded_columns;
        sweeps.sums(tensors, columns_of(memory).columns, n * s.s + plan.rows.begin(b), n * s.s + plan.rows.end(b),
                    found, found + padded_columns);
    }
    // Folds the blocks of sample n into its place in `channel`; sets the slopes.
    void constants(int64_t n, double* memory) const {
        const GroupColumns<Scalar> k = columns_of(memory);
        double *dz = channel + 2 * n * padded_columns, *dz_xhat = dz + padded_columns, *w_dz = memory,
               *w_dz_xhat = memory + padded_columns;
        add_blocks(memory, plan.rows.blocks, padded_columns, dz);
        add_blocks(memory + padded_columns, plan.rows.blocks, padded_columns, dz_xhat);
        add_columns(dz, channels, rows_merged);
        add_columns(dz_xhat, channels, rows_merged);
        for (int64_t c = 0; c < channels; c += kLanes) {
            const double2 total = load2(dz + c), weight = param_at(a.weight, c, channels, 1.0);
            const double2 dot = k.columns.center(c, load2(k.mean + c), load2(k.rstd + c), total, load2(dz_xhat + c));
            store2(dz_xhat + c, dot);
            store2(w_dz + c, weight * total);
            store2(w_dz_xhat + c, weight * dot);
        }
        const double minus_inv_count = -1.0 / double(s.s * rows_merged * width);
        for (int64_t g = 0; g < a.groups; ++g) {
            const int64_t first = g * width, last = first + width;
            GradientSums weighted{0.0, 0.0};
            for (int64_t c = first; c < last; ++c) {
                weighted.dz += w_dz[c];
                weighted.dz_xhat += w_dz_xhat[c];
            }
            std::fill(w_dz + first, w_dz + last, weighted.dz * minus_inv_count);
            std::fill(w_dz_xhat + first, w_dz_xhat + last, weighted.dz_xhat * minus_inv_count);
        }
        for (int64_t c = 0; c < channels; c += kLanes)
            k.columns.set_slope(c, load2(k.mean + c), load2(k.rstd + c), param_at(a.weight, c, channels, 1.0),
                                load2(w_dz + c), load2(w_dz_xhat + c));
        for (Scalar* field : {k.columns.a, k.columns.b, k.columns.c}) repeat_columns(field, channels, rows_merged);
    }
    void output(int64_t n, int64_t b, double* memory) const {
        if (!a.dx && !a.dresidual) return;
        const GroupColumns<Scalar> k = columns_of(memory);
        for_chunks_backwards(n * s.s + plan.rows.begin(b), n * s.s + plan.rows.end(b), 2 * s.c * int64_t(sizeof(T)),
                             [&](int64_t first, int64_t last) { sweeps.write(tensors, k.columns, first, last); });
    }
    void parameters(int64_t first, int64_t last) const {
        for (int64_t c = first; c < last; c += kLanes) {
            double2 total = zero2(), dot = zero2();
            for (int64_t n = 0; n < s.n; ++n) {
                total = total + load2(channel + 2 * n * padded_columns + c);
                dot = dot + load2(channel + (2 * n + 1) * padded_columns + c);
            }
            put_param(a.dweight, c, channels, dot);
            put_param(a.dbias, c, channels, total);
        }
    }

    void run(const Parallel& parallel) {
        const int64_t sample = 2 * s.s * s.c * int64_t(sizeof(T)), kept = 2 * s.n * padded_columns;
        const bool cut = plan.rows.blocks > 1;
        channel = scratch(kept + (cut ? kInFlight * plan.together * per_sample() : 0));
        if (!cut) {
            parallel(s.n, s.n * sample, [&](int64_t begin, int64_t end) {
                double* memory = scratch<Scratch::kTask>(per_sample());
                columns_of(memory).clear_behind(s.c);
                for (int64_t n = begin; n < end; ++n) {
                    prepare(n, memory);
                    sums(n, 0, memory);
                    constants(n, memory);
                    output(n, 0, memory);
                }
                if (tensors.stream) stream_fence();
            });
        } else {
            const SampleSteps<GroupRowsBackward> steps{*this, channel + kept};
            steps.clear_behind();
            relay(steps, steps.chunks(), parallel, s.n * sample);
        }
        if (a.dweight.data || a.dbias.data)
            parallel((channels + kMergeChannels - 1) / kMergeChannels, 16 * s.n * channels,
                     [&](int64_t begin, int64_t end) {
                         parameters(begin * kMergeChannels, std::min(channels, end * kMergeChannels));
                     });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
