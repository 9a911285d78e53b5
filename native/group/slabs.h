// How slabs become tasks, layout (N, C, S): one (sample, group) is C / G channels of S, one contiguous slab. Rows are cut
// into segments as in plan/planar_plan.h; segments are counted through the whole tensor: (N, C, per_row).
#pragma once
#include <algorithm>
#include <cstdint>

#include "plan/planar_plan.h"
#include "planar/block.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

struct SlabPlan {
    int64_t groups = 1, slabs = 1, channels = 1, per_row = 1, segments = 1;  // the last three: per slab, row, slab
    int64_t parts = 1, bundle = 1;                                           // parts of a slab, or slabs of a task

    int64_t cut(int64_t p) const { return segments * p / parts; }
    int64_t in_sample(int64_t segment) const { return segment % (groups * segments); }
    // Tasks where no slab is cut: bundles never reach into the next sample.
    int64_t bundles() const { return (groups + bundle - 1) / bundle; }
    int64_t tasks() const { return slabs / groups * bundles(); }
    int64_t first_slab(int64_t task) const { return task / bundles() * groups + task % bundles() * bundle; }
    int64_t last_slab(int64_t task) const {
        return task / bundles() * groups + std::min(groups, (task % bundles() + 1) * bundle);
    }
};

inline SlabPlan plan_slabs(const Shape& s, int64_t groups, int64_t element_bytes) {
    constexpr int64_t kBundle = 3136, kTasks = 16;  // elements of a bundle, four runs; so many tasks at least
    SlabPlan plan;
    plan.groups = groups;
    plan.slabs = s.n * groups;
    plan.channels = s.c / groups;
    plan.per_row = std::max<int64_t>(1, (s.s + kSegment - 1) / kSegment);
    plan.segments = plan.channels * plan.per_row;
    const int64_t elements = plan.channels * s.s, slab = elements * element_bytes;
    int64_t wanted = slab > kSlabBytes ? (slab + kSlabBytes / 2 - 1) / (kSlabBytes / 2) : 1;
    if (plan.slabs < 8 && slab > 64 * 1024)
        wanted = std::max(wanted, std::min((32 + plan.slabs - 1) / plan.slabs, slab / (32 * 1024)));
    plan.parts = std::max<int64_t>(1, std::min(wanted, plan.segments));
    const int64_t most = std::min({groups, kGroupMax, kBundle / std::max<int64_t>(1, elements), plan.slabs / kTasks});
    plan.bundle = plan.parts > 1 ? 1 : std::max<int64_t>(1, most);
    return plan;
}

// Where segment `index` of the whole tensor is: in which memory row, and the how-manieth of it.
struct Piece {
    int64_t row, at;
};
NK_INLINE Piece piece_of(const SlabPlan& plan, int64_t index) {
    if (plan.per_row == 1) return {index, 0};  // a division costs as much as half a short row
    return {index / plan.per_row, index % plan.per_row};
}

// Segment `index` of the whole tensor.
NK_INLINE Rows slab_segment(const Shape& s, const SlabPlan& plan, int64_t index) {
    if (plan.per_row == 1) return {index * s.s, s.s, index * s.bit_row()};
    const int64_t row = index / plan.per_row, at = index % plan.per_row * kSegment;
    return {row * s.s + at, std::min(kSegment, s.s - at), row * s.bit_row() + at / 8};
}

// A parameter of the channels of kLanes segments from the one on that has index `first` in its sample.
inline double2 segment_param(const Param& p, const Shape& s, const SlabPlan& plan, int64_t first, double absent) {
    if (plan.per_row == 1) return param_at(p, first, s.c, absent);
    double t[kLanes];
    for (int i = 0; i < kLanes; ++i) t[i] = p.at(std::min(s.c - 1, (first + i) / plan.per_row), absent);
    return load2(t);
}

// What a task knows of its segments: arrays padded to whole vectors.
template <class Scalar> struct SegmentConstants {
    double *mean, *rstd, *dz, *dz_xhat;
    Columns<Scalar> columns;

    explicit SegmentConstants(int64_t segments)
        : SegmentConstants(segments, scratch<Scratch::kTask>(doubles(segments))) {}
    SegmentConstants(int64_t segments, double* memory)
        : mean(memory), rstd(mean + padded(segments)), dz(rstd + padded(segments)), dz_xhat(dz + padded(segments)),
          columns(dz_xhat + padded(segments), segments) {}
    static int64_t doubles(int64_t segments) { return 4 * padded(segments) + Columns<Scalar>::doubles(segments); }
};

}  // namespace NK_ISA
}  // namespace normkit
