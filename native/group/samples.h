// How samples become tasks, channels last: what forward and backward of group norm share.
#pragma once
#include <algorithm>
#include <cstdint>

#include "plan/planar_plan.h"
#include "plan/relay.h"
#include "plan/rows_plan.h"
#include "rows/rows_in_one.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

struct SamplePlan {
    RowsPlan rows;         // of one sample
    int64_t together = 1;  // samples whose sums are made before their outputs
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
        if (sweeps.tensors.stream) stream_fence();
    }
};

// The call on such rows.
template <class Call> Call with_rows_in_one(Call call, int64_t rows_merged) {
    call.shape.c *= rows_merged;
    call.shape.s /= rows_merged;
    return call;
}

// What the statistics of a group say about each of its channels, and the memory of one sample's constants.
template <class Scalar> struct GroupColumns {
    double *mean, *rstd;  // (padded_columns)
    Columns<Scalar> columns;
    static int64_t doubles(int64_t channels) { return 2 * padded(channels) + Columns<Scalar>::doubles(channels); }
    GroupColumns(double* memory, int64_t channels)
        : mean(memory), rstd(memory + padded(channels)), columns(memory + 2 * padded(channels), channels) {}

    void clear_behind(int64_t channels) const {  // once, before the first sample
        for (double* field : {mean, rstd}) std::fill(field + channels, field + padded(channels), 0.0);
        columns.clear_behind(channels);
    }
    void set_affine(const Param& weight, const Param& bias, int64_t channels, int64_t rows_merged) const {
        for (int64_t c = 0; c < channels; c += kLanes) {
            columns.set_affine(c, load2(mean + c), load2(rstd + c), param_at(weight, c, channels, 1.0),
                               param_at(bias, c, channels, 0.0));
            store_as(columns.rstd + c, load2(rstd + c));
        }
        for (Scalar* field : {columns.m, columns.scale, columns.shift, columns.rstd})
            repeat_columns(field, channels, rows_merged);
    }
};

// total = the sum of `blocks` rows of `padded_columns` that lie 2 * padded_columns apart.
inline void add_blocks(const double* sums, int64_t blocks, int64_t padded_columns, double* total) {
    for (int64_t c = 0; c < padded_columns; c += kLanes) {
        double2 found = load2(sums + c);
        for (int64_t b = 1; b < blocks; ++b) found = found + load2(sums + 2 * b * padded_columns + c);
        store2(total + c, found);
    }
}

}  // namespace NK_ISA
}  // namespace normkit
