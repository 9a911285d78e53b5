// Statistics within a sample, channels last (N, S, C): group norm and instance norm, forward and backward.
//
// Per sample the sums of each channel are made by the whole-row sweeps of channel_rows.h and folded into groups; all
// channels of a group share one shift, so folding is adding. A sample that fits the cache is swept twice by one task;
// larger ones are cut into blocks of rows and taken a few at a time (relay.h), so that what the threads together keep in
// cache still holds them when the outputs are written.
#pragma once
#include "channel_rows_backward.h"
#include "group_planar_backward.h"
#include "relay.h"

namespace normkit {
namespace NK_ISA {

struct SamplePlan {
    RowsPlan rows;           // of one sample
    int64_t together = 1;    // samples whose sums are made before their outputs
};

inline SamplePlan plan_samples(const Shape& s, int64_t element_bytes) {
    const int64_t bytes = s.s * s.c * element_bytes;
    SamplePlan plan;
    plan.rows.rows = s.s;
    if (bytes <= 128 * 1024 || (bytes <= kSlabBytes && s.n >= 8)) return plan;
    plan.rows = plan_rows(s.s, s.c);
    plan.together = std::max<int64_t>(1, (2 << 20) / bytes);
    return plan;
}

// The samples of a call as chunks of a relay: `together` samples each, a unit is one of a sample's blocks.
template <class Sweeps> struct SampleSteps {
    const Sweeps& sweeps;
    double* memory;  // kInFlight * together * per_sample

    int64_t chunks() const { return (sweeps.s.n + sweeps.plan.together - 1) / sweeps.plan.together; }
    int64_t first(int64_t chunk) const { return chunk * sweeps.plan.together; }
    int64_t samples(int64_t chunk) const { return std::min(sweeps.plan.together, sweeps.s.n - first(chunk)); }
    int64_t units(int64_t chunk) const { return samples(chunk) * sweeps.plan.rows.blocks; }
    double* of(int64_t slot, int64_t i) const {
        return memory + (slot * sweeps.plan.together + i) * sweeps.per_sample();
    }

    void clear_behind() const {
        for (int64_t i = 0; i < std::min(kInFlight * sweeps.plan.together, sweeps.s.n); ++i)
            sweeps.columns_of(of(0, i)).clear_behind(sweeps.s.c);
    }
    void prepare(int64_t chunk, int64_t slot) const {
        for (int64_t i = 0; i < samples(chunk); ++i) sweeps.prepare(first(chunk) + i, of(slot, i));
    }
    void sums(int64_t chunk, int64_t slot, int64_t unit) const {
        const int64_t i = unit / sweeps.plan.rows.blocks;
        sweeps.sums(first(chunk) + i, unit % sweeps.plan.rows.blocks, of(slot, i));
    }
    void finish(int64_t chunk, int64_t slot) const {
        for (int64_t i = 0; i < samples(chunk); ++i) sweeps.constants(first(chunk) + i, of(slot, i));
    }
    void output(int64_t chunk, int64_t slot, int64_t unit) const {
        const int64_t i = unit / sweeps.plan.rows.blocks;
        sweeps.output(first(chunk) + i, unit % sweeps.plan.rows.blocks, of(slot, i));
    }
    void leave() const {
        if (sweeps.rows.stream) stream_fence();
    }
};

// The call on such rows.
template <class Call> Call with_rows_in_one(Call call, int64_t times) {
    call.shape.c *= times;
    call.shape.s /= times;
    return call;
}

// What the statistics of a group say about each of its channels, and the memory of one sample's constants.
template <class Scalar> struct GroupColumns {
    double *mean, *rstd;  // (wide)
    Columns<Scalar> columns;
    static int64_t doubles(int64_t channels) { return 2 * padded(channels) + Columns<Scalar>::doubles(channels); }
    GroupColumns(double* memory, int64_t channels)
        : mean(memory), rstd(memory + padded(channels)), columns(memory + 2 * padded(channels), channels) {}

    void clear_behind(int64_t channels) const {  // once, before the first sample
        for (double* field : {mean, rstd}) std::fill(field + channels, field + padded(channels), 0.0);
        columns.clear_behind(channels);
    }
    void set_affine(const Param& weight, const Param& bias, int64_t channels, int64_t times) const {
        for (int64_t c = 0; c < channels; c += kLanes) {
            columns.set_affine(c, load2(mean + c), load2(rstd + c), param_at(weight, c, channels, 1.0),
                               param_at(bias, c, channels, 0.0));
            store_as(columns.rstd + c, load2(rstd + c));
        }
        for (Scalar* field : {columns.m, columns.scale, columns.shift, columns.rstd}) repeat_columns(field, channels, times);
    }
};

// total = the sum of `blocks` rows of `wide` that lie 2 * wide apart.
inline void add_blocks(const double* sums, int64_t blocks, int64_t wide, double* total) {
    for (int64_t c = 0; c < wide; c += kLanes) {
        D2 found = load2(sums + c);
        for (int64_t b = 1; b < blocks; ++b) found = found + load2(sums + 2 * b * wide + c);
        store2(total + c, found);
    }
}

template <class T, Act A, bool R> struct GroupRowsForward {
    using N = Num<T>;
    using Scalar = typename N::Scalar;
    const int64_t channels, times;
    const GroupForward a;  // on rows taken as one, as many as `times`
    const Shape& s;
    const SamplePlan plan;
    const RowsForward<T, A, R> rows;
    const int64_t wide, width;  // padded columns, channels of a group

    explicit GroupRowsForward(const GroupForward& a_)
        : channels(a_.shape.c), times(rows_in_one<T>(a_.shape.s, a_.shape.c, a_.bits)), a(with_rows_in_one(a_, times)),
          s(a.shape),
          plan(plan_samples(s, sizeof(T))), rows(a, plan.rows.blocks > 1), wide(padded(s.c)), width(channels / a.groups) {}

    // A sample's memory: shifts (wide), sums (blocks, 2, wide), constants.
    int64_t per_sample() const { return (1 + 2 * plan.rows.blocks) * wide + GroupColumns<Scalar>::doubles(s.c); }
    GroupColumns<Scalar> columns_of(double* memory) const { return {memory + (1 + 2 * plan.rows.blocks) * wide, s.c}; }

    // The shifts.
    void prepare(int64_t n, double* k) const {
        const T* p = rows.x + n * s.s * s.c;
        const int64_t last = s.s * times - 1;  // row
        if (width == 1 || kShortSums<T>) {
            rows_shifts(p, last + 1, channels, k);
        } else {
            for (int64_t g = 0; g < a.groups; ++g, p += width) {
                const double shift = median_of_three(value_of(p[0]), value_of(p[(last + 1) / 2 * channels + width / 2]),
                                                     value_of(p[last * channels + width - 1]));
                std::fill(k + g * width, k + (g + 1) * width, shift);
            }
        }
        repeat_columns(k, channels, times);
        std::fill(k + s.c, k + wide, 0.0);
    }
    void sums(int64_t n, int64_t b, double* memory) const {
        double* sum = memory + (1 + 2 * b) * wide;
        rows_sums(rows.x, n * s.s + plan.rows.begin(b), n * s.s + plan.rows.end(b), s.c, memory, sum, sum + wide);
    }
    void constants(int64_t n, double* memory) const {
        double *sum = memory + wide, *squares = sum + wide;
        add_blocks(sum, plan.rows.blocks, wide, sum);
        add_blocks(squares, plan.rows.blocks, wide, squares);
        add_columns(sum, channels, times);
        add_columns(squares, channels, times);
        const GroupColumns<Scalar> out = columns_of(memory);
        for (int64_t g = 0; g < a.groups; ++g) {
            Sums found;
            for (int64_t c = g * width; c < (g + 1) * width; ++c) found.add({sum[c], squares[c]});
            const Statistics st = finish(found, memory[g * width], s.s * times * width, a.eps);
            write_statistics(a.stats, n * a.groups + g, s.n * a.groups, st);
            std::fill(out.mean + g * width, out.mean + (g + 1) * width, st.mean);
            std::fill(out.rstd + g * width, out.rstd + (g + 1) * width, st.rstd);
        }
        out.set_affine(a.weight, a.bias, channels, times);
    }
    void output(int64_t n, int64_t b, double* memory) const {
        const GroupColumns<Scalar> k = columns_of(memory);
        for_chunks_backwards(n * s.s + plan.rows.begin(b), n * s.s + plan.rows.end(b), s.c * int64_t(sizeof(T)),
                             [&](int64_t first, int64_t last) { rows.write(k.columns, first, last); });
    }

    void run(const Parallel& parallel) const {
        const int64_t sample = s.s * s.c * int64_t(sizeof(T)), blocks = plan.rows.blocks;
        if (blocks == 1) {
            parallel(s.n, s.n * sample, [&](int64_t begin, int64_t end) {
                double* memory = scratch<Scratch::kTask>(per_sample());
                columns_of(memory).clear_behind(s.c);
                for (int64_t n = begin; n < end; ++n) {
                    prepare(n, memory);
                    sums(n, 0, memory);
                    constants(n, memory);
                    output(n, 0, memory);
                }
                if (rows.stream) stream_fence();
            });
            return;
        }
        const SampleSteps<GroupRowsForward> steps{*this, scratch(kInFlight * plan.together * per_sample())};
        steps.clear_behind();
        relay(steps, steps.chunks(), parallel, s.n * sample);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
