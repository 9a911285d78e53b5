// Statistics within a sample, layout (N, C, S): the backward of group norm and instance norm.
//
// The first sweep makes S dz and S dz * xhat of each segment: weighted and summed over a slab they give the constants of
// dx, summed over the batch dbias and dweight.
#pragma once
#include "channel_planar_backward.h"
#include "group_planar.h"

namespace normkit {
namespace NK_ISA {

// dx = a_c * dz + b * ((x - m) * rstd) + c with a_c = weight_c * rstd; b and c come from S w dz and S w dz xhat over the slab.
template <class Scalar>
inline Slope<Scalar> group_slope(double mean, double rstd, double weight, GradientSums weighted, int64_t count) {
    const double offset = mean - double(Scalar(mean));
    const double b = -rstd * weighted.dz_xhat / double(count);
    return {Scalar(weight * rstd), Scalar(b), Scalar(-rstd * weighted.dz / double(count) - b * rstd * offset)};
}

template <class T, Gate G, bool R> struct GroupPlanarBackward {
    using Scalar = typename Num<T>::Scalar;
    using Constants = SegmentConstants<Scalar>;

    const GroupBackward& a;
    const Shape& s;
    const SlabPlan plan;
    const PlanarBackward<T, G, R> planes;
    const int64_t plane;  // of the sums of all segments: S dz, then S dz * xhat, each padded

    explicit GroupPlanarBackward(const GroupBackward& a_)
        : a(a_), s(a_.shape), plan(plan_slabs(a_.shape, a_.groups, 2 * sizeof(T))), planes(a_),
          plane(plan.slabs * plan.segments + kLanes) {}

    // f(slab, begin, end): the segments in [first, last) of each slab.
    template <class F> NK_INLINE void for_slabs(int64_t first, int64_t last, F&& f) const {
        for (int64_t slab = first / plan.segments; first < last; ++slab) {
            const int64_t end = std::min(last, (slab + 1) * plan.segments);
            f(slab, first, end);
            first = end;
        }
    }

    // The constants of x - m, z and xhat of segments [first, last).
    void input_constants(const Constants& k, int64_t first, int64_t last) const {
        for_slabs(first, last, [&](int64_t slab, int64_t begin, int64_t end) {
            std::fill(k.mean + (begin - first), k.mean + (end - first), a.stats[slab]);
            std::fill(k.rstd + (begin - first), k.rstd + (end - first), a.stats[2 * plan.slabs + slab]);
        });
        for (int64_t i = 0; first + i < last; i += kLanes) {
            k.columns.set_affine(i, load2(k.mean + i), load2(k.rstd + i), segment_param(a.weight, s, plan, first + i, 1.0),
                                 segment_param(a.bias, s, plan, first + i, 0.0));
            store_as(k.columns.rstd + i, load2(k.rstd + i));
        }
    }

    void sums(const Constants& k, double* found, int64_t first, int64_t last) const {
        for (int64_t begin = first; begin < last; begin += kGroupMax) {
            const int64_t end = std::min(last, begin + kGroupMax);
            BlockSums block(end - begin);
            for (int64_t j = begin; j < end; ++j) {
                LaneSums lanes;
                planes.add_run(planes.incoming(k.columns, j - first), slab_segment(s, plan, j), lanes);
                block.add(j - begin, lanes);
            }
            block.close(end - begin);
            for (int64_t j = begin; j < end; j += kLanes) {
                const int64_t i = j - first;
                const D2 dz = load2(block.total + (j - begin)), dot = load2(block.dot + (j - begin));
                store_head(found + j, dz, end - j);
                store_head(found + plane + j, k.columns.center(i, load2(k.mean + i), load2(k.rstd + i), dz, dot), end - j);
            }
        }
    }

    // The constants of dx of segments [first, last), from the sums of their whole slabs, which begin at `from`.
    void output_constants(const Constants& k, const double* found, int64_t first, int64_t last) const {
        const double count = double(plan.channels * s.s);
        for_slabs(first, last, [&](int64_t slab, int64_t begin, int64_t end) {
            const GradientSums total = weighted(found, slab);
            std::fill(k.dz + (begin - first), k.dz + (end - first), -total.dz / count);
            std::fill(k.dz_xhat + (begin - first), k.dz_xhat + (end - first), -total.dz_xhat / count);
        });
        for (int64_t i = 0; first + i < last; i += kLanes)
            k.columns.set_slope(i, load2(k.mean + i), load2(k.rstd + i), segment_param(a.weight, s, plan, first + i, 1.0),
                                load2(k.dz + i), load2(k.dz_xhat + i));
    }

    GradientSums weighted(const double* found, int64_t slab) const {
        const int64_t first = slab * plan.segments, last = first + plan.segments;
        if (plan.segments < kLanes) {
            GradientSums total{0.0, 0.0};
            for (int64_t j = first; j < last; ++j) {
                const double w = a.weight.at(j / plan.per_row % s.c, 1.0);
                total.dz += w * found[j];
                total.dz_xhat += w * found[plane + j];
            }
            return total;
        }
        D2 dz = zero2(), dz_xhat = zero2();
        for (int64_t j = first; j < last; j += kLanes) {
            const D2 w = segment_param(a.weight, s, plan, j, 1.0);
            const int64_t n = last - j;
            if (n >= kLanes) {
                dz = fma(w, load2(found + j), dz);
                dz_xhat = fma(w, load2(found + plane + j), dz_xhat);
            } else {
                dz = fma(w, Num<double>::get_tail(found + j, n, zero2()), dz);
                dz_xhat = fma(w, Num<double>::get_tail(found + plane + j, n, zero2()), dz_xhat);
            }
        }
        return {sum_lanes(dz), sum_lanes(dz_xhat)};
    }

    void output(const Constants& k, int64_t first, int64_t last, int64_t next) const {
        if (!a.dx && !a.dresidual) return;
        if (plan.per_row == 1) return planes.write_rows(k.columns, first, last - first, planes.target(first * s.s), next);
        for (int64_t j = first; j < last; ++j) {
            const Rows at = slab_segment(s, plan, j);
            planes.write_run(planes.constants(k.columns, j - first), at, planes.target(at.offset), next);
        }
    }

    // dweight and dbias of channels [first, last): at most kLanes.
    void parameters(const double* found, int64_t first, int64_t last) const {
        D2 dz = zero2(), dz_xhat = zero2();
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
        double* found = scratch(2 * plane);
        if (plan.parts == 1) {
            parallel(plan.tasks(), bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) {
                    const int64_t first = plan.first_slab(t) * plan.segments, last = plan.last_slab(t) * plan.segments;
                    const Constants k(last - first);
                    input_constants(k, first, last);
                    sums(k, found, first, last);
                    output_constants(k, found, first, last);
                    output(k, first, last, t + 1 < end ? plan.bundle * plan.channels * s.s : 0);
                }
                if (planes.stream) stream_fence();
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
            parallel(plan.slabs * plan.parts, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = end - 1; t >= begin; --t) {
                    const Constants k(part_end(t) - part(t));
                    input_constants(k, part(t), part_end(t));
                    output_constants(k, found, part(t), part_end(t));
                    output(k, part(t), part_end(t), 0);
                }
                if (planes.stream) stream_fence();
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
