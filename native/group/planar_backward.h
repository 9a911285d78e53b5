// Statistics within a sample, layout (N, C, S): the backward of group norm and instance norm.
//
// The first sweep makes S dz and S dz * xhat of each segment: weighted and summed over a slab they give the constants of
// dx, summed over the batch dbias and dweight.
#pragma once
#include <algorithm>
#include <cstdint>

#include "group/slabs.h"
#include "moments.h"
#include "parallel.h"
#include "plan/planar_plan.h"
#include "planar/block.h"
#include "planar/gradient.h"
#include "planar/sums.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/short_sums.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// dx = a_c * dz + b * ((x - m) * rstd) + c with a_c = weight_c * rstd; b and c come from S w dz and S w dz xhat over the
// slab.
template <class Scalar>
inline Slope<Scalar> group_slope(double mean, double rstd, double weight, GradientSums weighted, int64_t count) {
    const double offset = mean - double(Scalar(mean));
    const double b = -rstd * weighted.dz_xhat / double(count);
    return {Scalar(weight * rstd), Scalar(b), Scalar(-rstd * weighted.dz / double(count) - b * rstd * offset)};
}

template <class T> struct GroupPlanarBackward {
    using Scalar = typename Num<T>::Scalar;
    using Constants = SegmentConstants<Scalar>;

    const GroupBackward& a;
    const Shape& s;
    const SlabPlan plan;
    const PlanarGradient<T> tensors;
    const PlanarGradientSweeps<T> sweeps;
    const int64_t plane;  // of the sums of all segments: S dz, then S dz * xhat, each padded

    explicit GroupPlanarBackward(const GroupBackward& a_)
        : a(a_), s(a_.shape), plan(plan_slabs(a_.shape, a_.groups, 2 * sizeof(T))),
          tensors(a_, cuts_channels(a_.shape)),
          sweeps(planar_gradient_sweeps<T>(a_.activation, a_.bits != nullptr, a_.residual != nullptr)),
          plane(plan.slabs * plan.segments + kLanes) {}

    // Whether batch norm would cut channels of these sizes into parts: then no lines of outputs are fetched here, either.
    static bool cuts_channels(const Shape& shape) { return plan_planar(shape, 2 * sizeof(T)).parts > 1; }

    // to[j - first] = value(slab of j) for segments [first, last).
    template <class Value> NK_INLINE void spread(double* to, int64_t first, int64_t last, Value&& value) const {
        int64_t slab = first / plan.segments;
        for (int64_t j = first; j < last; ++slab) {
            const double v = value(slab);
            for (const int64_t end = std::min(last, (slab + 1) * plan.segments); j < end; ++j) to[j - first] = v;
        }
    }

    // The constants of x - m, z and xhat of segments [first, last).
    void input_constants(const Constants& k, int64_t first, int64_t last) const {
        spread(k.mean, first, last, [&](int64_t slab) { return a.stats[slab]; });
        spread(k.rstd, first, last, [&](int64_t slab) { return a.stats[2 * plan.slabs + slab]; });
        const int64_t at = plan.in_sample(first);
        for (int64_t i = 0; first + i < last; i += kLanes) {
            k.columns.set_affine(i, load2(k.mean + i), load2(k.rstd + i), segment_param(a.weight, s, plan, at + i, 1.0),
                                 segment_param(a.bias, s, plan, at + i, 0.0));
            store_as(k.columns.rstd + i, load2(k.rstd + i));
        }
    }

    void sums(const Constants& k, double* found, int64_t first, int64_t last) const {
        for (int64_t begin = first; begin < last; begin += kGroupMax) {
            const int64_t end = std::min(last, begin + kGroupMax);
            BlockSums block(end - begin);
            if (s.s < kLongRun) sweeps.sum_rows(tensors, begin, end - begin, k.columns, begin - first, block);
            else
                for (int64_t j = begin; j < end; ++j) {
                    LaneSums lanes;
                    const Columns<Scalar> at = k.columns.from(j - first);
                    const Piece p = piece_of(plan, j);
                    sweeps.sum_segments(tensors, {{*at.m, *at.scale, *at.shift}, *at.rstd}, row_of(plan.per_row), p.row,
                                        p.at, p.at + 1, lanes);
                    block.add<kRowsAtOnce>(j - begin, lanes);
                }
            block.close(end - begin);
            for (int64_t j = begin; j < end; j += kLanes) {
                const int64_t i = j - first;
                const double2 dz = load2(block.total + (j - begin));
                const double2 dot = dots<T>(k.columns, i, load2(block.dot + (j - begin)));
                store_head(found + j, dz, end - j);
                store_head(found + plane + j, k.columns.center(i, load2(k.mean + i), load2(k.rstd + i), dz, dot),
                           end - j);
            }
        }
    }

    // totals: (2, slabs): S w dz and S w dz * xhat of whole slabs, from the sums of their segments [first, last).
    void weigh(const Constants& k, const double* found, double* totals, int64_t first, int64_t last) const {
        const int64_t at = plan.in_sample(first);
        for (int64_t i = 0; first + i < last; i += kLanes) {
            const double2 w = segment_param(a.weight, s, plan, at + i, 1.0);
            store2(k.dz + i, w * load2(found + first + i));
            store2(k.dz_xhat + i, w * load2(found + plane + first + i));
        }
        for (int64_t slab = first / plan.segments, i = 0; first + i < last; ++slab) {
            double dz = 0.0, dz_xhat = 0.0;
            for (const int64_t end = i + plan.segments; i < end; ++i) dz += k.dz[i], dz_xhat += k.dz_xhat[i];
            totals[slab] = dz;
            totals[plan.slabs + slab] = dz_xhat;
        }
    }

    // The constants of dx of segments [first, last).
    void output_constants(const Constants& k, const double* totals, int64_t first, int64_t last) const {
        spread(k.dz, first, last, [&](int64_t slab) { return totals[slab]; });
        spread(k.dz_xhat, first, last, [&](int64_t slab) { return totals[plan.slabs + slab]; });
        const double2 per_value = both_halves(-1.0 / double(plan.channels * s.s));
        const int64_t at = plan.in_sample(first);
        for (int64_t i = 0; first + i < last; i += kLanes)
            k.columns.set_slope(i, load2(k.mean + i), load2(k.rstd + i), segment_param(a.weight, s, plan, at + i, 1.0),
                                per_value * load2(k.dz + i), per_value * load2(k.dz_xhat + i));
    }

    void output(const Constants& k, int64_t first, int64_t last, int64_t next) const {
        if (!a.dx && !a.dresidual) return;
        if (plan.per_row == 1)
            return sweeps.write_rows(tensors, k.columns, first, last - first, tensors.target(first * s.s), next);
        for (int64_t j = first; j < last; ++j) {
            const Piece p = piece_of(plan, j);
            sweeps.write_segments(tensors, k.columns, j - first, row_of(plan.per_row), p.row, p.at, p.at + 1, next);
        }
    }

    // dweight and dbias of channels [first, last): at most kLanes.
    void parameters(const double* found, int64_t first, int64_t last) const {
        double2 dz = zero2(), dz_xhat = zero2();
        if (plan.per_row == 1) {
            for (int64_t n = 0; n < s.n; ++n) {
                dz = dz + load2(found + n * s.c + first);
                dz_xhat = dz_xhat + load2(found + plane + n * s.c + first);
            }
        } else {
            double t[kLanes] = {}, u[kLanes] = {};
            for (int64_t n = 0; n < s.n; ++n)
                for (int64_t c = first; c < last; ++c)
                    for (int64_t j = (n * s.c + c) * plan.per_row; j < (n * s.c + c + 1) * plan.per_row; ++j) {
                        t[c - first] += found[j];
                        u[c - first] += found[plane + j];
                    }
            dz = load2(t);
            dz_xhat = load2(u);
        }
        put_param(a.dweight, first, last, dz_xhat);
        put_param(a.dbias, first, last, dz);
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = 2 * s.elements() * int64_t(sizeof(T));
        double *found = scratch(2 * plane + 2 * plan.slabs), *totals = found + 2 * plane;
        if (plan.parts == 1) {
            parallel(plan.tasks(), bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) {
                    const int64_t first = plan.first_slab(t) * plan.segments, last = plan.last_slab(t) * plan.segments;
                    const Constants k(last - first);
                    input_constants(k, first, last);
                    sums(k, found, first, last);
                    weigh(k, found, totals, first, last);
                    output_constants(k, totals, first, last);
                    output(k, first, last, t + 1 < end ? plan.bundle * plan.channels * s.s : 0);
                }
                if (tensors.stream) stream_fence();
            });
        } else {
            auto part = [&](int64_t t) { return t / plan.parts * plan.segments + plan.cut(t % plan.parts); };
            auto part_end = [&](int64_t t) { return t / plan.parts * plan.segments + plan.cut(t % plan.parts + 1); };
            parallel(plan.slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) {
                    const Constants k(part_end(t) - part(t));
                    input_constants(k, part(t), part_end(t));
                    sums(k, found, part(t), part_end(t));
                }
            });
            for (int64_t slab = 0; slab < plan.slabs; ++slab)
                weigh(Constants(plan.segments), found, totals, slab * plan.segments, (slab + 1) * plan.segments);
            parallel(plan.slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = end - 1; t >= begin; --t) {
                    const Constants k(part_end(t) - part(t));
                    input_constants(k, part(t), part_end(t));
                    output_constants(k, totals, part(t), part_end(t));
                    output(k, part(t), part_end(t), 0);
                }
                if (tensors.stream) stream_fence();
            });
        }
        if (a.dweight.data || a.dbias.data)
            parallel((s.c + kLanes - 1) / kLanes, 16 * plan.slabs * plan.segments, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) parameters(found, t * kLanes, std::min(s.c, (t + 1) * kLanes));
            });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
