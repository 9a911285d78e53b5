// Statistics within a sample, layout (N, C, S): group norm and instance norm, forward and backward.
//
// One (sample, group) is C / G channels of S: one contiguous slab. A task is one slab swept twice, or, where slabs are
// few or outgrow the cache, a part of one, with all sums before all outputs. Rows are segments as in channel_planar.h:
// the segment with index k of channel c of sample n is segment n * per_row + k of that channel there.
#pragma once
#include "channel_planar_backward.h"
#include "channel_rows.h"

namespace normkit {
namespace NK_ISA {

struct SlabPlan {
    int64_t channels = 1, segments = 1, parts = 1, per_row = 1;  // per slab
    PlanarPlan rows;                                             // how segment_at walks
    int64_t cut(int64_t p) const { return segments * p / parts; }
};

inline SlabPlan plan_slabs(const Shape& s, int64_t groups, int64_t element_bytes) {
    SlabPlan plan;
    plan.rows.segments_per_row = plan.per_row = std::max<int64_t>(1, (s.s + kSegment - 1) / kSegment);
    plan.rows.segments = s.n * plan.per_row;
    plan.channels = s.c / groups;
    plan.segments = plan.channels * plan.per_row;
    const int64_t slab = plan.channels * s.s * element_bytes, slabs = s.n * groups;
    int64_t wanted = slab > kSlabBytes ? (slab + kSlabBytes / 2 - 1) / (kSlabBytes / 2) : 1;
    if (slabs < 16 && slab > 64 * 1024)
        wanted = std::max(wanted, std::min((32 + slabs - 1) / slabs, slab / (32 * 1024)));
    plan.parts = std::max<int64_t>(1, std::min(wanted, plan.segments));
    return plan;
}

// Shifted sums of one contiguous run.
template <class T> Sums run_sums(const T* x, int64_t length, double k) {
    Shape run{1, 1, length, false};
    PlanarPlan plan;
    plan.segments_per_row = plan.segments = std::max<int64_t>(1, (length + kSegment - 1) / kSegment);
    return planar_sums(x, run, plan, 0, 0, plan.segments, k);
}

template <class T> double run_shift(const T* x, int64_t length) {
    return median_of_three(value_of(x[0]), value_of(x[length / 2]), value_of(x[length - 1]));
}

template <class T, Act A, bool R> struct GroupPlanarForward {
    using Scalar = typename Num<T>::Scalar;
    const GroupForward& a;
    const Shape& s;
    const SlabPlan plan;
    const T *x, *residual;
    T* y;
    const bool stream;

    explicit GroupPlanarForward(const GroupForward& a_)
        : a(a_), s(a_.shape), plan(plan_slabs(a_.shape, a_.groups, sizeof(T))), x(static_cast<const T*>(a_.x)),
          residual(static_cast<const T*>(a_.residual)), y(static_cast<T*>(a_.y)),
          stream(outgrows_cache(a_.shape.elements() * int64_t(sizeof(T)))) {}

    int64_t slab_elements() const { return plan.channels * s.s; }
    int64_t start(int64_t k) const { return (k / plan.per_row) * s.s + (k % plan.per_row) * kSegment; }

    Sums sums(int64_t slab, int64_t begin, int64_t end) const {
        const T* p = x + slab * slab_elements();
        return run_sums(p + start(begin), start(end) - start(begin), run_shift(p, slab_elements()));
    }

    Statistics statistics(int64_t slab, Sums found) const {
        return finish(found, run_shift(x + slab * slab_elements(), slab_elements()), slab_elements(), a.eps);
    }

    void output(int64_t slab, Statistics st, int64_t begin, int64_t end) const {
        const int64_t n = slab / a.groups, first = (slab % a.groups) * plan.channels;
        for (int64_t k = begin; k < end;) {
            const int64_t c = first + k / plan.per_row, stop = std::min(end, (k / plan.per_row + 1) * plan.per_row);
            const ForwardStretch<T, A, R> stretch(
                a.activation, affine<Scalar>(st.mean, st.rstd, a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
            for (; k < stop; ++k) {
                const Segment seg = segment_at(s, plan.rows, c, n * plan.per_row + k % plan.per_row);
                stretch(x + seg.offset, R ? residual + seg.offset : nullptr, y + seg.offset,
                        a.bits ? a.bits + seg.bit_byte : nullptr, seg.length, stream);
            }
        }
    }

    void run(const Parallel& parallel) const {
        const int64_t slabs = s.n * a.groups, bytes = s.elements() * int64_t(sizeof(T));
        if (plan.parts == 1) {
            parallel(slabs, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t slab = begin; slab < end; ++slab) {
                    const Statistics st = statistics(slab, sums(slab, 0, plan.segments));
                    write_statistics(a.stats, slab, slabs, st);
                    output(slab, st, 0, plan.segments);
                }
                if (stream) stream_fence();
            });
            return;
        }
        double* partial = scratch(2 * slabs * plan.parts);
        parallel(slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const int64_t p = t % plan.parts;
                const Sums found = sums(t / plan.parts, plan.cut(p), plan.cut(p + 1));
                partial[2 * t] = found.sum;
                partial[2 * t + 1] = found.squares;
            }
        });
        parallel(slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = end - 1; t >= begin; --t) {
                const int64_t slab = t / plan.parts, p = t % plan.parts;
                Sums found;
                for (int64_t q = slab * plan.parts; q < (slab + 1) * plan.parts; ++q)
                    found.add({partial[2 * q], partial[2 * q + 1]});
                const Statistics st = statistics(slab, found);
                if (p == 0) write_statistics(a.stats, slab, slabs, st);
                output(slab, st, plan.cut(p), plan.cut(p + 1));
            }
            if (stream) stream_fence();
        });
    }
};

// dx = a_c * dz + b * ((x - m) * rstd) + c with a_c = weight_c * rstd; b and c come from S w dz and S w dz xhat over the slab.
template <class Scalar>
inline Slope<Scalar> group_slope(double mean, double rstd, double weight, GradientSums weighted, int64_t count) {
    const double offset = mean - double(Scalar(mean));
    const double b = -rstd * weighted.dz_xhat / double(count);
    return {Scalar(weight * rstd), Scalar(b), Scalar(-rstd * weighted.dz / double(count) - b * rstd * offset)};
}

template <class T, Gate G, bool R> struct GroupPlanarBackward {
    using Scalar = typename Num<T>::Scalar;
    const GroupBackward& a;
    const Shape& s;
    const SlabPlan plan;
    const PlanarBackward<T, G, R> planes;

    explicit GroupPlanarBackward(const GroupBackward& a_)
        : a(a_), s(a_.shape), plan(plan_slabs(a_.shape, a_.groups, 2 * sizeof(T))), planes(a_) {}

    double mean(int64_t slab) const { return a.stats[slab]; }
    double rstd(int64_t slab) const { return a.stats[2 * s.n * a.groups + slab]; }
    int64_t channel(int64_t slab, int64_t k) const { return (slab % a.groups) * plan.channels + k / plan.per_row; }
    int64_t segment(int64_t slab, int64_t k) const { return (slab / a.groups) * plan.per_row + k % plan.per_row; }

    Incoming<T, G, R> incoming(int64_t slab, int64_t c) const {
        return Incoming<T, G, R>(a.activation,
                                 affine<Scalar>(mean(slab), rstd(slab), a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
    }

    // found: (N, C, per_row, 2): S dz and S dz * xhat of each segment.
    void sums(double* found, int64_t slab, int64_t begin, int64_t end) const {
        for (int64_t k = begin; k < end; ++k) {
            const int64_t c = channel(slab, k), g = segment(slab, k);
            const Sums raw = planes.sums(c, g, g + 1, incoming(slab, c), rstd(slab));
            const GradientSums centered = center<Scalar>(mean(slab), rstd(slab), raw.sum, raw.squares);
            found[2 * (slab * plan.segments + k)] = centered.dz;
            found[2 * (slab * plan.segments + k) + 1] = centered.dz_xhat;
        }
    }

    GradientSums weighted(const double* found, int64_t slab) const {
        GradientSums total{0.0, 0.0};
        for (int64_t k = 0; k < plan.segments; ++k) {
            const double w = a.weight.at(channel(slab, k), 1.0);
            total.dz += w * found[2 * (slab * plan.segments + k)];
            total.dz_xhat += w * found[2 * (slab * plan.segments + k) + 1];
        }
        return total;
    }

    void output(int64_t slab, GradientSums total, int64_t begin, int64_t end) const {
        if (!a.dx && !a.dresidual) return;
        const int64_t count = plan.channels * s.s;
        for (int64_t k = end - 1; k >= begin; --k) {
            const int64_t c = channel(slab, k), g = segment(slab, k);
            planes.output(c, group_slope<Scalar>(mean(slab), rstd(slab), a.weight.at(c, 1.0), total, count), g, g + 1,
                          incoming(slab, c), rstd(slab));
        }
    }

    void parameters(const double* found, int64_t first, int64_t last) const {
        for (int64_t c = first; c < last; ++c) {
            GradientSums total{0.0, 0.0};
            for (int64_t n = 0; n < s.n; ++n)
                for (int64_t k = 0; k < plan.per_row; ++k) {
                    const double* p = found + 2 * ((n * s.c + c) * plan.per_row + k);
                    total.dz += p[0];
                    total.dz_xhat += p[1];
                }
            a.dweight.put(c, total.dz_xhat);
            a.dbias.put(c, total.dz);
        }
    }

    void run(const Parallel& parallel) const {
        const int64_t slabs = s.n * a.groups, bytes = 2 * s.elements() * int64_t(sizeof(T));
        double* found = scratch(2 * s.n * s.c * plan.per_row);
        if (plan.parts == 1) {
            parallel(slabs, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t slab = begin; slab < end; ++slab) {
                    sums(found, slab, 0, plan.segments);
                    output(slab, weighted(found, slab), 0, plan.segments);
                }
                if (planes.stream) stream_fence();
            });
        } else {
            parallel(slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t)
                    sums(found, t / plan.parts, plan.cut(t % plan.parts), plan.cut(t % plan.parts + 1));
            });
            parallel(slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = end - 1; t >= begin; --t)
                    output(t / plan.parts, weighted(found, t / plan.parts), plan.cut(t % plan.parts),
                           plan.cut(t % plan.parts + 1));
                if (planes.stream) stream_fence();
            });
        }
        if (a.dweight.data || a.dbias.data)
            parallel(s.c, 16 * s.n * s.c * plan.per_row, [&](int64_t begin, int64_t end) { parameters(found, begin, end); });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
