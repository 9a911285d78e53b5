// Statistics within a sample, channels last: the backward of group norm and instance norm. Samples are cut and taken
// together as in group_rows.h; the sums of each sample and channel are kept for dweight and dbias.
#pragma once
#include "group_rows.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G, bool R> struct GroupRowsBackward {
    using Scalar = typename Num<T>::Scalar;
    const int64_t channels, times;
    const GroupBackward a;
    const Shape& s;
    const SamplePlan plan;
    const RowsBackward<T, G, R> rows;
    const int64_t wide, width;

    explicit GroupRowsBackward(const GroupBackward& a_)
        : channels(a_.shape.c), times(rows_in_one<T>(a_.shape.s, a_.shape.c, a_.bits)), a(with_rows_in_one(a_, times)),
          s(a.shape),
          plan(plan_samples(s, 2 * sizeof(T))), rows(a, plan.rows.blocks > 1), wide(padded(s.c)),
          width(channels / a.groups) {}

    // A sample's memory: sums (blocks, 2, wide), constants.
    int64_t per_sample() const { return 2 * plan.rows.blocks * wide + GroupColumns<Scalar>::doubles(s.c); }
    GroupColumns<Scalar> columns_of(double* memory) const { return {memory + 2 * plan.rows.blocks * wide, s.c}; }

    void prepare(int64_t n, double* memory) const {
        const GroupColumns<Scalar> out = columns_of(memory);
        const double *mean = a.stats + n * a.groups, *rstd = mean + 2 * s.n * a.groups;
        for (int64_t g = 0; g < a.groups; ++g) {
            std::fill(out.mean + g * width, out.mean + (g + 1) * width, mean[g]);
            std::fill(out.rstd + g * width, out.rstd + (g + 1) * width, rstd[g]);
        }
        out.set_affine(a.weight, a.bias, channels, times);
    }
    void sums(int64_t n, int64_t b, double* memory) const {
        double* found = memory + 2 * b * wide;
        rows.sums(columns_of(memory).columns, n * s.s + plan.rows.begin(b), n * s.s + plan.rows.end(b), found, found + wide);
    }
    // Folds the blocks of sample n into `channel` (2, wide): S dz and S dz * xhat per channel; sets the slopes.
    void fold(int64_t n, double* memory, double* channel) const {
        const GroupColumns<Scalar> k = columns_of(memory);
        double *dz = channel + 2 * n * wide, *dz_xhat = dz + wide, *w_dz = memory, *w_dz_xhat = memory + wide;
        add_blocks(memory, plan.rows.blocks, wide, dz);
        add_blocks(memory + wide, plan.rows.blocks, wide, dz_xhat);
        add_columns(dz, channels, times);
        add_columns(dz_xhat, channels, times);
        for (int64_t c = 0; c < channels; c += kLanes) {
            const D2 total = load2(dz + c), weight = param_at(a.weight, c, channels, 1.0);
            const D2 dot = k.columns.center(c, load2(k.mean + c), load2(k.rstd + c), total, load2(dz_xhat + c));
            store2(dz_xhat + c, dot);
            store2(w_dz + c, weight * total);
            store2(w_dz_xhat + c, weight * dot);
        }
        const double each = -1.0 / double(s.s * times * width);
        for (int64_t g = 0; g < a.groups; ++g) {
            const int64_t first = g * width, last = first + width;
            GradientSums weighted{0.0, 0.0};
            for (int64_t c = first; c < last; ++c) {
                weighted.dz += w_dz[c];
                weighted.dz_xhat += w_dz_xhat[c];
            }
            std::fill(w_dz + first, w_dz + last, weighted.dz * each);
            std::fill(w_dz_xhat + first, w_dz_xhat + last, weighted.dz_xhat * each);
        }
        for (int64_t c = 0; c < channels; c += kLanes)
            k.columns.set_slope(c, load2(k.mean + c), load2(k.rstd + c), param_at(a.weight, c, channels, 1.0),
                                load2(w_dz + c), load2(w_dz_xhat + c));
        for (Scalar* field : {k.columns.a, k.columns.b, k.columns.c}) repeat_columns(field, channels, times);
    }
    void output(int64_t n, int64_t b, double* memory) const {
        if (!a.dx && !a.dresidual) return;
        const GroupColumns<Scalar> k = columns_of(memory);
        for_chunks_backwards(n * s.s + plan.rows.begin(b), n * s.s + plan.rows.end(b), 2 * s.c * int64_t(sizeof(T)),
                             [&](int64_t first, int64_t last) { rows.write(k.columns, first, last); });
    }
    void parameters(const double* channel, int64_t first, int64_t last) const {
        for (int64_t c = first; c < last; c += kLanes) {
            D2 total = zero2(), dot = zero2();
            for (int64_t n = 0; n < s.n; ++n) {
                total = total + load2(channel + 2 * n * wide + c);
                dot = dot + load2(channel + (2 * n + 1) * wide + c);
            }
            put_param(a.dweight, c, channels, dot);
            put_param(a.dbias, c, channels, total);
        }
    }

    void run(const Parallel& parallel) const {
        const int64_t sample = 2 * s.s * s.c * int64_t(sizeof(T)), blocks = plan.rows.blocks;
        double* channel = scratch(2 * s.n * wide + (blocks == 1 ? 0 : plan.together * per_sample()));  // (N, 2, wide)
        if (blocks == 1) {
            parallel(s.n, s.n * sample, [&](int64_t begin, int64_t end) {
                double* memory = scratch<Scratch::kTask>(per_sample());
                columns_of(memory).clear_behind(s.c);
                for (int64_t n = begin; n < end; ++n) {
                    prepare(n, memory);
                    sums(n, 0, memory);
                    fold(n, memory, channel);
                    output(n, 0, memory);
                }
                if (rows.stream) stream_fence();
            });
        } else {
            auto of = [&](int64_t i) { return channel + 2 * s.n * wide + i * per_sample(); };
            for (int64_t i = 0; i < std::min(plan.together, s.n); ++i) columns_of(of(i)).clear_behind(s.c);
            for (int64_t first = 0; first < s.n; first += plan.together) {
                const int64_t count = std::min(plan.together, s.n - first);
                for (int64_t i = 0; i < count; ++i) prepare(first + i, of(i));
                parallel(count * blocks, count * sample, [&](int64_t begin, int64_t end) {
                    for (int64_t t = begin; t < end; ++t) sums(first + t / blocks, t % blocks, of(t / blocks));
                });
                parallel(count, 16 * count * blocks * wide, [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) fold(first + i, of(i), channel);
                });
                parallel(count * blocks, count * sample, [&](int64_t begin, int64_t end) {
                    for (int64_t t = end - 1; t >= begin; --t) output(first + t / blocks, t % blocks, of(t / blocks));
                    if (rows.stream) stream_fence();
                });
            }
        }
        if (a.dweight.data || a.dbias.data)
            parallel((channels + kMergeChannels - 1) / kMergeChannels, 16 * s.n * channels, [&](int64_t begin, int64_t end) {
                parameters(channel, begin * kMergeChannels, std::min(channels, end * kMergeChannels));
            });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
