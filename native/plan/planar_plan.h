// How a channel-statistics kernel cuts its tensor into tasks. Depends on shapes only: never on the number of threads.
//
// Planar (N, C, S): a task is `group` neighbouring channels, or one of `parts` stretches of a channel when channels are
// few or one channel outgrows the cache. Rows longer than kSegment are read in segments. Channels last: rows_plan.h.
#pragma once
#include <algorithm>
#include <cstdint>

#include "view.h"

namespace normkit {

constexpr int64_t kSegment = 16384;      // elements: a piece of a long row; 64 KB of float32, which L2 keeps
constexpr int64_t kSlabBytes = 1 << 20;  // half of a common L2: what one task may keep there between its two passes
// tried: planar-blocks, planar-run-1568
constexpr int64_t kShortRow = 400;  // elements: rows below it are too short to stream one channel at a time
constexpr int64_t kRun = 784;       // elements: channels of a group times S, where rows are short
constexpr int64_t kGroupMax = 32;   // channels: more would leave too few tasks where S is small

struct PlanarPlan {
    int64_t group = 1, parts = 1, segments_per_row = 1, segments = 1;
    int64_t tasks(int64_t channels) const { return parts > 1 ? channels * parts : (channels + group - 1) / group; }
};

// A memory row that is read in pieces, as a channel of its own.
inline PlanarPlan row_of(int64_t pieces) {
    PlanarPlan plan;
    plan.segments_per_row = plan.segments = pieces;
    return plan;
}

inline PlanarPlan plan_planar(const Shape& shape, int64_t element_bytes) {
    PlanarPlan plan;
    plan.segments_per_row = std::max<int64_t>(1, (shape.s + kSegment - 1) / kSegment);
    plan.segments = shape.n * plan.segments_per_row;
    int64_t slab = shape.count() * element_bytes;
    int64_t wanted = 1;
    if (slab > kSlabBytes) wanted = (slab + kSlabBytes / 2 - 1) / (kSlabBytes / 2);
    if (shape.c < 16 && slab > 128 * 1024)  // below, the second loop over parts costs more than a second thread gains
        wanted = std::max(wanted, std::min((32 + shape.c - 1) / shape.c, slab / (32 * 1024)));
    plan.parts = std::max<int64_t>(1, std::min(wanted, plan.segments));
    if (plan.parts == 1 && shape.s < kShortRow)
        plan.group = std::min(kGroupMax, std::max<int64_t>(2, kRun / std::max<int64_t>(1, shape.s)));
    plan.group = std::max<int64_t>(1, std::min(plan.group, shape.c));
    return plan;
}

}  // namespace normkit
