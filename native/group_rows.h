// Statistics within a sample, channels last (N, S, C): group norm and instance norm, forward and backward.
//
// Per sample the sums of each channel are made by the whole-row sweeps of channel_rows.h and folded into groups; all
// channels of a group share one shift, so folding is adding. A sample that fits the cache is swept twice by one task;
// otherwise samples are cut into blocks of rows, with all sums before all outputs.
#pragma once
#include "channel_rows_backward.h"
#include "group_planar.h"

namespace normkit {
namespace NK_ISA {

struct SamplePlan {
    int64_t rows_per_block = 1, blocks = 1;  // of one sample
};

inline SamplePlan plan_samples(const Shape& s, int64_t element_bytes) {
    const int64_t bytes = s.s * s.c * element_bytes;
    if (bytes <= kSlabBytes && (s.n >= 16 || bytes <= 64 * 1024)) return {s.s, 1};
    const RowsPlan plan = plan_rows(s.s, s.c);
    return {plan.rows_per_block, plan.blocks};
}

template <class T, Act A, bool R> struct GroupRowsForward {
    using N = Num<T>;
    using Scalar = typename N::Scalar;
    const GroupForward& a;
    const Shape& s;
    const SamplePlan plan;
    const RowsForward<T, A, R> rows;
    const int64_t wide, width;  // padded channels, channels of a group

    explicit GroupRowsForward(const GroupForward& a_)
        : a(a_), s(a_.shape), plan(plan_samples(a_.shape, sizeof(T))), rows(a_), wide(padded(a_.shape.c)),
          width(a_.shape.c / a_.groups) {}

    double shift(int64_t n, int64_t g) const {
        const T* p = rows.x + n * s.s * s.c + g * width;
        return median_of_three(value_of(p[0]), value_of(p[s.s / 2 * s.c + width / 2]), value_of(p[(s.s - 1) * s.c + width - 1]));
    }
    void shifts(int64_t n, double* k) const {
        for (int64_t c = s.c; c < wide; ++c) k[c] = 0.0;
        for (int64_t g = 0; g < a.groups; ++g) std::fill(k + g * width, k + (g + 1) * width, shift(n, g));
    }
    void sums(int64_t n, int64_t b, const double* k, double* sum) const {
        std::fill(sum, sum + 2 * wide, 0.0);
        rows_sums(rows.x, n * s.s + b * plan.rows_per_block, n * s.s + std::min(s.s, (b + 1) * plan.rows_per_block), s.c, k,
                  sum, sum + wide, rows.ahead);
    }
    // sums: (blocks, 2, wide) of sample n.
    void constants(int64_t n, const double* k, const double* sums, Columns<Scalar>& out) const {
        for (int64_t g = 0; g < a.groups; ++g) {
            Sums found;
            for (int64_t b = 0; b < plan.blocks; ++b)
                for (int64_t c = g * width; c < (g + 1) * width; ++c)
                    found.add({sums[2 * b * wide + c], sums[(2 * b + 1) * wide + c]});
            const Statistics st = finish(found, k[g * width], s.s * width, a.eps);
            write_statistics(a.stats, n * a.groups + g, s.n * a.groups, st);
            for (int64_t c = g * width; c < (g + 1) * width; ++c)
                out.set(c, affine<Scalar>(st.mean, st.rstd, a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
        }
    }
    void output(int64_t n, int64_t b, const Columns<Scalar>& k) const {
        for_chunks_backwards(n * s.s + b * plan.rows_per_block, n * s.s + std::min(s.s, (b + 1) * plan.rows_per_block),
                             s.c * int64_t(sizeof(T)), [&](int64_t first, int64_t last) { rows.write(k, first, last); });
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = s.elements() * int64_t(sizeof(T)), constant = Columns<Scalar>::doubles(s.c);
        if (plan.blocks == 1) {
            parallel(s.n, bytes, [&](int64_t begin, int64_t end) {
                double* k = scratch<Scratch::kTask>(3 * wide + constant);
                Columns<Scalar> columns(k + 3 * wide, s.c);
                for (int64_t n = begin; n < end; ++n) {
                    shifts(n, k);
                    sums(n, 0, k, k + wide);
                    constants(n, k, k + wide, columns);
                    output(n, 0, columns);
                }
                if (rows.stream) stream_fence();
            });
            return;
        }
        const int64_t per_sample = (1 + 2 * plan.blocks) * wide + constant;
        double* memory = scratch(s.n * per_sample);
        parallel(s.n, 8 * s.n * wide, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) shifts(n, memory + n * per_sample);
        });
        parallel(s.n * plan.blocks, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                double* k = memory + t / plan.blocks * per_sample;
                sums(t / plan.blocks, t % plan.blocks, k, k + wide + 2 * (t % plan.blocks) * wide);
            }
        });
        auto columns_of = [&](int64_t n) {
            return Columns<Scalar>(memory + n * per_sample + (1 + 2 * plan.blocks) * wide, s.c);
        };
        parallel(s.n, 16 * s.n * plan.blocks * wide, [&](int64_t begin, int64_t end) {
            for (int64_t n = begin; n < end; ++n) {
                double* k = memory + n * per_sample;
                Columns<Scalar> columns = columns_of(n);
                constants(n, k, k + wide, columns);
            }
        });
        parallel(s.n * plan.blocks, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = end - 1; t >= begin; --t) output(t / plan.blocks, t % plan.blocks, columns_of(t / plan.blocks));
            if (rows.stream) stream_fence();
        });
    }
};

template <class T, Gate G, bool R> struct GroupRowsBackward {
    using Scalar = typename Num<T>::Scalar;
    const GroupBackward& a;
    const Shape& s;
    const SamplePlan plan;
    const RowsBackward<T, G, R> rows;
    const int64_t wide, width;

    explicit GroupRowsBackward(const GroupBackward& a_)
        : a(a_), s(a_.shape), plan(plan_samples(a_.shape, 2 * sizeof(T))), rows(a_), wide(padded(a_.shape.c)),
          width(a_.shape.c / a_.groups) {}

    double mean(int64_t n, int64_t g) const { return a.stats[n * a.groups + g]; }
    double rstd(int64_t n, int64_t g) const { return a.stats[2 * s.n * a.groups + n * a.groups + g]; }

    void prepare(int64_t n, Columns<Scalar> out) const {
        for (int64_t c = 0; c < s.c; ++c) {
            const int64_t g = c / width;
            out.set(c, affine<Scalar>(mean(n, g), rstd(n, g), a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
            out.rstd[c] = Scalar(rstd(n, g));
        }
    }
    void sums(int64_t n, int64_t b, const Columns<Scalar>& k, double* found) const {
        std::fill(found, found + 2 * wide, 0.0);
        rows.sums(k, n * s.s + b * plan.rows_per_block, n * s.s + std::min(s.s, (b + 1) * plan.rows_per_block), found,
                  found + wide);
    }
    // Folds the blocks of sample n into `channel` (2, wide): S dz and S dz * xhat per channel; sets the slopes.
    void fold(int64_t n, const double* found, double* channel, Columns<Scalar> out) const {
        for (int64_t g = 0; g < a.groups; ++g) {
            GradientSums weighted{0.0, 0.0};
            for (int64_t c = g * width; c < (g + 1) * width; ++c) {
                double total = 0.0, dot = 0.0;
                for (int64_t b = 0; b < plan.blocks; ++b) {
                    total += found[2 * b * wide + c];
                    dot += found[(2 * b + 1) * wide + c];
                }
                const GradientSums sums = center<Scalar>(mean(n, g), rstd(n, g), total, dot * rstd(n, g));
                channel[c] = sums.dz;
                channel[wide + c] = sums.dz_xhat;
                weighted.dz += a.weight.at(c, 1.0) * sums.dz;
                weighted.dz_xhat += a.weight.at(c, 1.0) * sums.dz_xhat;
            }
            for (int64_t c = g * width; c < (g + 1) * width; ++c)
                out.set(c, group_slope<Scalar>(mean(n, g), rstd(n, g), a.weight.at(c, 1.0), weighted, s.s * width));
        }
    }
    void output(int64_t n, int64_t b, const Columns<Scalar>& k) const {
        if (!a.dx && !a.dresidual) return;
        for_chunks_backwards(n * s.s + b * plan.rows_per_block, n * s.s + std::min(s.s, (b + 1) * plan.rows_per_block),
                             2 * s.c * int64_t(sizeof(T)), [&](int64_t first, int64_t last) { rows.write(k, first, last); });
    }
    void parameters(const double* channel, int64_t first, int64_t last) const {
        for (int64_t c = first; c < last; ++c) {
            double total = 0.0, dot = 0.0;
            for (int64_t n = 0; n < s.n; ++n) {
                total += channel[2 * n * wide + c];
                dot += channel[(2 * n + 1) * wide + c];
            }
            a.dweight.put(c, dot);
            a.dbias.put(c, total);
        }
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = 2 * s.elements() * int64_t(sizeof(T)), constant = Columns<Scalar>::doubles(s.c);
        const int64_t partial = plan.blocks == 1 ? 0 : 2 * plan.blocks * wide + constant;
        double* channel = scratch(s.n * (2 * wide + partial));  // (N, 2, wide), then per sample its blocks and constants
        auto blocks_of = [&](int64_t n) { return channel + 2 * s.n * wide + n * partial; };
        if (plan.blocks == 1) {
            parallel(s.n, bytes, [&](int64_t begin, int64_t end) {
                double* found = scratch<Scratch::kTask>(2 * wide + constant);
                Columns<Scalar> k(found + 2 * wide, s.c);
                for (int64_t n = begin; n < end; ++n) {
                    prepare(n, k);
                    sums(n, 0, k, found);
                    fold(n, found, channel + 2 * n * wide, k);
                    output(n, 0, k);
                }
                if (rows.stream) stream_fence();
            });
        } else {
            auto columns_of = [&](int64_t n) { return Columns<Scalar>(blocks_of(n) + 2 * plan.blocks * wide, s.c); };
            parallel(s.n, 56 * s.n * wide, [&](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n) prepare(n, columns_of(n));
            });
            parallel(s.n * plan.blocks, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) {
                    const int64_t n = t / plan.blocks, b = t % plan.blocks;
                    sums(n, b, columns_of(n), blocks_of(n) + 2 * b * wide);
                }
            });
            parallel(s.n, 16 * s.n * plan.blocks * wide, [&](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n) fold(n, blocks_of(n), channel + 2 * n * wide, columns_of(n));
            });
            parallel(s.n * plan.blocks, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = end - 1; t >= begin; --t) output(t / plan.blocks, t % plan.blocks, columns_of(t / plan.blocks));
                if (rows.stream) stream_fence();
            });
        }
        if (a.dweight.data || a.dbias.data)
            parallel((s.c + kMergeChannels - 1) / kMergeChannels, 16 * s.n * s.c, [&](int64_t begin, int64_t end) {
                parameters(channel, begin * kMergeChannels, std::min(s.c, end * kMergeChannels));
            });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
