// Statistics within a sample, channels last (N, S, C): group norm and instance norm, forward and backward.
//
// Per sample the sums of each channel are made by the whole-row sweeps of rows/ and folded into groups; all
// channels of a group share one shift, so folding is adding. A sample that fits the cache is swept twice by one task;
// larger ones are cut into blocks of rows and taken a few at a time (plan/relay.h), so that what the threads together keep in
// cache still holds them when the outputs are written.
#pragma once
#include <algorithm>
#include <cstdint>

#include "group/samples.h"
#include "moments.h"
#include "parallel.h"
#include "plan/relay.h"
#include "rows/output.h"
#include "rows/rows_in_one.h"
#include "rows/tiles.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/short_sums.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct GroupRowsForward {
    using Scalar = typename Num<T>::Scalar;
    const int64_t channels, rows_merged;
    const GroupForward a;  // on rows taken as one, as many as `rows_merged`
    const Shape& s;
    const SamplePlan plan;
    const RowsOutput<T> tensors;
    const RowsWriter<T> writer;
    const int64_t padded_columns, width;  // padded columns, channels of a group

    explicit GroupRowsForward(const GroupForward& a_)
        : channels(a_.shape.c), rows_merged(rows_in_one<T>(a_.shape.s, a_.shape.c, a_.bits)),
          a(with_rows_in_one(a_, rows_merged)), s(a.shape), plan(plan_samples(s, sizeof(T))), tensors(a, s.c),
          writer(rows_writer<T>(a.activation, a.residual != nullptr)), padded_columns(padded(s.c)),
          width(channels / a.groups) {}

    // A sample's memory: shifts (padded_columns), sums (blocks, 2, padded_columns), constants.
    int64_t per_sample() const {
        return (1 + 2 * plan.rows.blocks) * padded_columns + GroupColumns<Scalar>::doubles(s.c);
    }
    GroupColumns<Scalar> columns_of(double* memory) const {
        return {memory + (1 + 2 * plan.rows.blocks) * padded_columns, s.c};
    }

    // The shifts.
    void prepare(int64_t n, double* k) const {
        const T* p = tensors.x + n * s.s * s.c;
        const int64_t last = s.s * rows_merged - 1;  // row
        if (width == 1 || kShortSums<T>) {
            rows_shifts(p, last + 1, channels, k);
        } else {
            for (int64_t g = 0; g < a.groups; ++g, p += width) {
                const double shift = median_of_three(value_of(p[0]), value_of(p[(last + 1) / 2 * channels + width / 2]),
                                                     value_of(p[last * channels + width - 1]));
                std::fill(k + g * width, k + (g + 1) * width, shift);
            }
        }
        repeat_columns(k, channels, rows_merged);
        std::fill(k + s.c, k + padded_columns, 0.0);
    }
    void sums(int64_t n, int64_t b, double* memory) const {
        double* sum = memory + (1 + 2 * b) * padded_columns;
        rows_sums(tensors.x, n * s.s + plan.rows.begin(b), n * s.s + plan.rows.end(b), s.c, memory, sum,
                  sum + padded_columns);
    }
    void constants(int64_t n, double* memory) const {
        double *sum = memory + padded_columns, *squares = sum + padded_columns;
        add_blocks(sum, plan.rows.blocks, padded_columns, sum);
        add_blocks(squares, plan.rows.blocks, padded_columns, squares);
        add_columns(sum, channels, rows_merged);
        add_columns(squares, channels, rows_merged);
        const GroupColumns<Scalar> out = columns_of(memory);
        for (int64_t g = 0; g < a.groups; ++g) {
            Sums found;
            for (int64_t c = g * width; c < (g + 1) * width; ++c) found.add({sum[c], squares[c]});
            const Statistics st = finish(found, memory[g * width], s.s * rows_merged * width, a.eps);
            write_statistics(a.stats, n * a.groups + g, s.n * a.groups, st);
            std::fill(out.mean + g * width, out.mean + (g + 1) * width, st.mean);
            std::fill(out.rstd + g * width, out.rstd + (g + 1) * width, st.rstd);
        }
        out.set_affine(a.weight, a.bias, channels, rows_merged);
    }
    void output(int64_t n, int64_t b, double* memory) const {
        const GroupColumns<Scalar> k = columns_of(memory);
        for_chunks_backwards(n * s.s + plan.rows.begin(b), n * s.s + plan.rows.end(b), s.c * int64_t(sizeof(T)),
                             [&](int64_t first, int64_t last) { writer(tensors, k.columns, first, last); });
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
                if (tensors.stream) stream_fence();
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
