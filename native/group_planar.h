// Statistics within a sample, layout (N, C, S): group norm and instance norm, the forward.
//
// One (sample, group) is C / G channels of S: one contiguous slab. A task is a bundle of neighbouring slabs swept twice,
// or, where slabs are few or outgrow the cache, a part of one, with all sums before all outputs. Rows are cut into
// segments as in channel_planar.h; segments are counted through the whole tensor: (N, C, per_row).
#pragma once
#include "channel_planar.h"
#include "channel_rows.h"

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
    constexpr int64_t kBundle = 3136, kTasks = 16;  // elements of a bundle; so many tasks at least
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

// Segment `index` of the whole tensor.
NK_INLINE Rows slab_segment(const Shape& s, const SlabPlan& plan, int64_t index) {
    if (plan.per_row == 1) return {index * s.s, s.s, index * s.bit_row()};
    const int64_t row = index / plan.per_row, at = index % plan.per_row * kSegment;
    return {row * s.s + at, std::min(kSegment, s.s - at), row * s.bit_row() + at / 8};
}

// A parameter of the channels of kLanes segments from the one on that has index `first` in its sample.
inline D2 segment_param(const Param& p, const Shape& s, const SlabPlan& plan, int64_t first, double absent) {
    if (plan.per_row == 1) return param_at(p, first, s.c, absent);
    double t[kLanes];
    for (int i = 0; i < kLanes; ++i) t[i] = p.at(std::min(s.c - 1, (first + i) / plan.per_row), absent);
    return load2(t);
}

// What a task knows of its segments: arrays padded to whole vectors.
template <class Scalar> struct SegmentConstants {
    double *mean, *rstd, *dz, *dz_xhat;
    Columns<Scalar> columns;

    explicit SegmentConstants(int64_t segments) : SegmentConstants(segments, scratch<Scratch::kTask>(doubles(segments))) {}
    SegmentConstants(int64_t segments, double* memory)
        : mean(memory), rstd(mean + padded(segments)), dz(rstd + padded(segments)), dz_xhat(dz + padded(segments)),
          columns(dz_xhat + padded(segments), segments) {}
    static int64_t doubles(int64_t segments) { return 4 * padded(segments) + Columns<Scalar>::doubles(segments); }
};

// Shifted sums of one contiguous run.
template <class T> Sums run_sums(const T* x, int64_t length, double k) {
    LaneSums lanes;
    add_run(lanes, x, length, k, x);
    return lanes.sums();
}

template <class T> double run_shift(const T* x, int64_t length) {
    return median_in_lanes(value_of(x[0]), value_of(x[length / 2]), value_of(x[length - 1]));
}

template <class T, Act A, bool R> struct GroupPlanarForward {
    using Scalar = typename Num<T>::Scalar;
    using Stretch = ForwardStretch<T, A, R>;

    const GroupForward& a;
    const Shape& s;
    const SlabPlan plan;
    const PlanarForward<T, A, R> planes;
    const T* x;
    T* y;
    const bool stream;

    explicit GroupPlanarForward(const GroupForward& a_)
        : a(a_), s(a_.shape), plan(plan_slabs(a_.shape, a_.groups, sizeof(T))), planes(a_),
          x(static_cast<const T*>(a_.x)), y(static_cast<T*>(a_.y)),
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
        if (kShortSums<T> && !in_range(sum_lanes(lanes.dot()))) add_wide_run(lanes = LaneSums(), x + first, last - first);
        return lanes;
    }

    // y of segments [begin, end) of the tensor; mean, rstd: of the slabs from `slab` on.
    void output(int64_t begin, int64_t end, int64_t slab, const double* mean, const double* rstd, int64_t next) const {
        const SegmentConstants<Scalar> k(end - begin);
        for (int64_t j = begin; j < end; ++slab, ++mean, ++rstd)
            for (; j < std::min(end, (slab + 1) * plan.segments); ++j) k.mean[j - begin] = *mean, k.rstd[j - begin] = *rstd;
        const int64_t first = plan.in_sample(begin);
        for (int64_t i = 0; begin + i < end; i += kLanes)
            k.columns.set_affine(i, load2(k.mean + i), load2(k.rstd + i), segment_param(a.weight, s, plan, first + i, 1.0),
                                 segment_param(a.bias, s, plan, first + i, 0.0));
        if (plan.per_row == 1) return planes.write_rows(k.columns, begin, end - begin, y + begin * s.s, stream, {next, 0});
        for (int64_t j = begin; j < end; ++j) {
            const Rows at = slab_segment(s, plan, j);
            planes.write(Stretch(a.activation, k.columns, j - begin), at, y + at.offset, stream, {next, 0});
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
            const Statistics2 st = finish(load2(sums.total + i), load2(sums.dot + i), load2(k + i), slab_elements(), a.eps);
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
