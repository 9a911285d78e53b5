// Statistics within a sample, layout (N, C, S): group norm and instance norm, the forward.
//
// A task is a bundle of neighbouring slabs swept twice, or, where slabs are few or outgrow the cache, a part of one, with
// all sums before all outputs.
#pragma once
#include <algorithm>
#include <cstdint>

#include "group/slabs.h"
#include "moments.h"
#include "parallel.h"
#include "plan/planar_plan.h"
#include "plan/streams.h"
#include "planar/block.h"
#include "planar/forward_sums.h"
#include "planar/output.h"
#include "planar/sums.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/short_sums.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct GroupPlanarForward {
    using Scalar = typename Num<T>::Scalar;

    const GroupForward& a;
    const Shape& s;
    const SlabPlan plan;
    const PlanarOutput<T> out;
    const PlanarWriters<T> writers;
    const T* x;
    T* y;
    const bool stream;

    explicit GroupPlanarForward(const GroupForward& a_)
        : a(a_), s(a_.shape), plan(plan_slabs(a_.shape, a_.groups, sizeof(T))), out(a_),
          writers(planar_writers<T>(a_.activation, a_.residual != nullptr)), x(static_cast<const T*>(a_.x)),
          y(static_cast<T*>(a_.y)),
          stream(outgrows_cache(a_.shape.elements() * int64_t(sizeof(T))) && !stages(a_.shape)) {}

    int64_t slab_elements() const { return plan.channels * s.s; }
    double shift(int64_t slab) const {
        return kShortSums<T> ? 0.0 : run_shift(x + slab * slab_elements(), slab_elements());
    }

    // The sums of segments [begin, end) of a slab: one contiguous run.
    NK_INLINE LaneSums lane_sums(int64_t slab, int64_t begin, int64_t end, double k) const {
        auto at = [&](int64_t i) { return slab_segment(s, plan, slab * plan.segments + i).offset; };
        const int64_t first = at(begin), last = end == plan.segments ? (slab + 1) * slab_elements() : at(end);
        LaneSums lanes;
        add_run(lanes, x + first, last - first, k, (stream ? x : y) + first);
        if (kShortSums<T> && !in_range(sum_lanes(lanes.dot())))
            add_wide_run(lanes = LaneSums(), x + first, last - first);
        return lanes;
    }

    // y of segments [begin, end) of the tensor; mean, rstd: of the slabs from `slab` on.
    void output(int64_t begin, int64_t end, int64_t slab, const double* mean, const double* rstd, int64_t next) const {
        const SegmentConstants<Scalar> k(end - begin);
        for (int64_t j = begin; j < end; ++slab, ++mean, ++rstd)
            for (; j < std::min(end, (slab + 1) * plan.segments); ++j)
                k.mean[j - begin] = *mean, k.rstd[j - begin] = *rstd;
        const int64_t first = plan.in_sample(begin);
        for (int64_t i = 0; begin + i < end; i += kLanes)
            k.columns.set_affine(i, load2(k.mean + i), load2(k.rstd + i),
                                 segment_param(a.weight, s, plan, first + i, 1.0),
                                 segment_param(a.bias, s, plan, first + i, 0.0));
        if (plan.per_row == 1) return writers.rows(out, k.columns, begin, end - begin, y + begin * s.s, stream, next);
        for (int64_t j = begin; j < end; ++j) {
            const Piece p = piece_of(plan, j);
            writers.segments(out, k.columns, j - begin, row_of(plan.per_row), p.row, p.at, p.at + 1, stream, next);
        }
    }

    // Slabs [first, last): at most kGroupMax.
    void bundle(int64_t first, int64_t last, int64_t next) const {
        double k[kGroupMax] = {}, mean[kGroupMax], rstd[kGroupMax];
        BlockSums sums(last - first);
        for (int64_t slab = first; slab < last; ++slab) {
            k[slab - first] = shift(slab);
            sums.add<kRowsAtOnce>(slab - first, lane_sums(slab, 0, plan.segments, k[slab - first]));
        }
        sums.close(last - first);
        for (int64_t i = 0; first + i < last; i += kLanes) {
            const Statistics2 st =
                finish(load2(sums.total + i), load2(sums.dot + i), load2(k + i), slab_elements(), a.eps);
            write_statistics(a.stats, first + i, last, plan.slabs, st);
            store2(mean + i, st.mean);
            store2(rstd + i, st.rstd);
        }
        output(first * plan.segments, last * plan.segments, first, mean, rstd, next);
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = s.elements() * int64_t(sizeof(T));
        if (plan.parts > 1) return run_parts(parallel, bytes);
        parallel(plan.tasks(), bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
                bundle(plan.first_slab(t), plan.last_slab(t), t + 1 < end ? plan.bundle * slab_elements() : 0);
            if (stream) stream_fence();
        });
    }

    void run_parts(const Parallel& parallel, int64_t bytes) const {
        double* partial = scratch(2 * plan.slabs * plan.parts);
        parallel(plan.slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const int64_t slab = t / plan.parts, p = t % plan.parts;
                const Sums found = lane_sums(slab, plan.cut(p), plan.cut(p + 1), shift(slab)).sums();
                partial[2 * t] = found.sum;
                partial[2 * t + 1] = found.squares;
            }
        });
        parallel(plan.slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = end - 1; t >= begin; --t) {
                const int64_t slab = t / plan.parts, p = t % plan.parts, first = slab * plan.segments;
                Sums found;
                for (int64_t q = slab * plan.parts; q < (slab + 1) * plan.parts; ++q)
                    found.add({partial[2 * q], partial[2 * q + 1]});
                const Statistics st = finish(found, shift(slab), slab_elements(), a.eps);
                if (p == 0) write_statistics(a.stats, slab, plan.slabs, st);
                output(first + plan.cut(p), first + plan.cut(p + 1), slab, &st.mean, &st.rstd, 0);
            }
            if (stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
