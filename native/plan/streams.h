// Where outputs are streamed.
#pragma once
#include <cstdint>

#include "plan/planar_plan.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// Streaming stores pay where the output's old lines have left the cache; below, they throw out what an ordinary store
// would find there: end to end 1.1 to 1.2 times from 12 MB on, a loss of a fifth at 6 to 8 MB, with and without a
// residual (tried: stream-rows, stream-rotating).
inline bool outgrows_cache(int64_t bytes) { return kStreams && bytes >= (int64_t(12) << 20); }

// Short rows that start anywhere are streamed by way of a stage: whole lines, and no line by two kinds of store.
inline bool stages(const Shape& s) { return s.s < kShortRow && s.s % kLanes != 0; }

// Outputs that outgrow the cache bypass it. Below, the next layer finds its input in cache, and an allocator that hands
// out memory just freed hands out cached lines, which streaming stores would first throw out. A residual is one stream
// more in each pass; a stage costs a copy (tried: stream-planar, stream-residual, stream-6mb, stream-staged).
inline bool streams(const Shape& s, int64_t element_bytes, bool residual) {
    const int64_t least = stages(s) ? (residual ? 14 : 28) : (residual ? 6 : 14);
    return kStreams && s.elements() * element_bytes >= least << 20;
}

}  // namespace NK_ISA
}  // namespace normkit
