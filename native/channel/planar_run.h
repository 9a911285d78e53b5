// How planar batch norm runs, forward and backward alike: a task takes a block of channels, or one channel. Where a
// channel is cut into parts, all sums come first, in one parallel loop, and each task of the second loop merges the
// parts of its channel in order.
#pragma once
#include <algorithm>
#include <cstdint>

#include "moments.h"
#include "parallel.h"
#include "scratch.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

// Sweeps has the shape s, the plan, whether it streams, and block, segment_sums and write_segments.
template <class Sweeps> void run_planar_parts(const Sweeps& of, const Parallel& parallel, int64_t bytes) {
    const auto& plan = of.plan;
    double* partial = scratch(2 * of.s.c * plan.parts);
    auto cut = [&](int64_t p) { return plan.segments * p / plan.parts; };
    parallel(of.s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const Sums found = of.segment_sums(t / plan.parts, cut(t % plan.parts), cut(t % plan.parts + 1));
            partial[2 * t] = found.sum;
            partial[2 * t + 1] = found.squares;
        }
    });
    parallel(of.s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
        for (int64_t t = end - 1; t >= begin; --t) {
            const int64_t c = t / plan.parts, p = t % plan.parts;
            Sums found;
            for (int64_t q = c * plan.parts; q < (c + 1) * plan.parts; ++q)
                found.add({partial[2 * q], partial[2 * q + 1]});
            of.write_segments(c, found, cut(p), cut(p + 1), p == 0, 0);
        }
        if (of.stream) stream_fence();
    });
}

template <class Sweeps> void run_planar(const Sweeps& of, const Parallel& parallel, int64_t bytes) {
    const auto& plan = of.plan;
    if (plan.parts > 1) return run_planar_parts(of, parallel, bytes);
    parallel(plan.tasks(of.s.c), bytes, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const int64_t next = t + 1 < end ? plan.group * of.s.s : 0;
            if (plan.group > 1) {
                of.block(t * plan.group, std::min(of.s.c, (t + 1) * plan.group), next);
            } else {
                of.write_segments(t, of.segment_sums(t, 0, plan.segments), 0, plan.segments, true, next);
            }
        }
        if (of.stream) stream_fence();
    });
}

}  // namespace NK_ISA
}  // namespace normkit
