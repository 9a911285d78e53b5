// Statistics across the batch, layout (N, C, S): the backward of batch norm.
//
// First sweep: total = S dz and dot = S dz * xhat over the channel. Second sweep, from L2: dx = a * dz + b * xhat + c
// and, with a residual behind an activation, dresidual = dz. With constant statistics b = c = 0, and the first sweep
// runs only where dweight or dbias is wanted.
#pragma once
#include "channel_planar.h"
#include "gradient.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G, bool R> struct PlanarBackward {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    using In = Incoming<T, G, R>;

    const ChannelBackward& a;
    const Shape& s;
    const PlanarPlan plan;
    const T *dy, *x, *residual;
    T *dx, *dresidual;
    const bool stream, staged;

    explicit PlanarBackward(const ChannelBackward& a_)
        : a(a_), s(a_.shape), plan(plan_planar(a_.shape, 2 * sizeof(T))), dy(static_cast<const T*>(a_.dy)),
          x(static_cast<const T*>(a_.x)), residual(static_cast<const T*>(a_.residual)), dx(static_cast<T*>(a_.dx)),
          dresidual(static_cast<T*>(a_.dresidual)), stream(streams(a_.shape, sizeof(T), a_.dresidual != nullptr)),
          staged(stream && stages(a_.shape)) {}

    double mean(int64_t c) const { return a.stats[c]; }
    double rstd(int64_t c) const { return a.stats[2 * s.c + c]; }
    In incoming(int64_t c) const {
        return In(a.activation, affine<Scalar>(mean(c), rstd(c), a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
    }
    const T* residual_at(int64_t offset) const { return R ? residual + offset : nullptr; }
    const uint8_t* bits_at(int64_t byte) const { return In::kReadsBits ? a.bits + byte : nullptr; }

    // sum: S dz, squares: S dz * (x - m) * rstd.
    Sums sums(int64_t c, int64_t begin, int64_t end) const {
        return sums(c, begin, end, incoming(c), rstd(c));
    }

    Sums sums(int64_t c, int64_t begin, int64_t end, const In& in, double rstd_c) const {
        const V zero = N::set(0);
        const D2 m = widen(in.m);
        D2 t0 = zero2(), t1 = t0, d0 = t0, d1 = t0;
        auto take = [&](V g, V xv, V r, uint32_t bits, D2& total, D2& dot) {
            D2 dz = widen(in(g, xv - in.m, r, bits));
            total = total + dz;
            dot = fma(dz, widen(xv) - m, dot);  // exact products: dz may vanish where the sums nearly cancel
        };
        for (int64_t k = begin; k < end; ++k) {
            const Segment seg = segment_at(s, plan, c, k);
            const T *g = dy + seg.offset, *xp = x + seg.offset, *r = residual_at(seg.offset);
            const uint8_t* bits = bits_at(seg.bit_byte);
            auto one = [&](int64_t i, D2& total, D2& dot) {
                take(N::get(g + i, 0), N::get(xp + i, 0), R ? N::get(r + i, 0) : zero,
                     In::kReadsBits ? get_bits(bits + i / 8) : 0, total, dot);
            };
            int64_t i = 0;
            for (; i + 2 * kLanes <= seg.length; i += 2 * kLanes) {
                one(i, t0, d0);
                one(i + kLanes, t1, d1);
            }
            if (i + kLanes <= seg.length) {
                one(i, t0, d0);
                i += kLanes;
            }
            if (int64_t n = seg.length - i; n > 0)  // the tail's dy is zero: its lanes add nothing
                take(N::get_tail(g + i, n, zero), N::get_tail(xp + i, n, in.m), R ? N::get_tail(r + i, n, zero) : zero,
                     In::kReadsBits ? get_bits_tail(bits + i / 8, n) : 0, t1, d1);
        }
        return {sum_lanes(t0 + t1), sum_lanes(d0 + d1) * rstd_c};
    }

    struct Target { T *dx, *dz; };  // where a segment's outputs go; null where not wanted
    Target target(int64_t offset) const { return {dx ? dx + offset : nullptr, dresidual ? dresidual + offset : nullptr}; }
    bool streamable(Target to) const {
        return stream && aligned_for_stream(to.dx ? to.dx : to.dz) && (!to.dz || aligned_for_stream(to.dz));
    }

    template <bool Stream>
    void stretch(const In& in, Slope<Scalar> slope, double rstd_c, const Segment& seg, Target to, int64_t next) const {
        const V rs = N::set(rstd_c), sa = N::set(slope.a), sb = N::set(slope.b), sc = N::set(slope.c), zero = N::set(0);
        const T *g = dy + seg.offset, *xp = x + seg.offset, *r = residual_at(seg.offset);
        const uint8_t* bits = bits_at(seg.bit_byte);
        auto put = [](T* p, V v) { Stream ? N::put_stream(p, v) : N::put(p, v); };
        int64_t i = 0;
        for (; i + kLanes <= seg.length; i += kLanes) {
            prefetch(xp + i + next);
            prefetch(g + i + next);
            V centered = N::get(xp + i, 0) - in.m;
            V dz = in(N::get(g + i, 0), centered, R ? N::get(r + i, 0) : zero,
                      In::kReadsBits ? get_bits(bits + i / 8) : 0);
            if (to.dx) put(to.dx + i, fma(sb, centered * rs, fma(sa, dz, sc)));
            if (to.dz) put(to.dz + i, dz);
        }
        if (int64_t n = seg.length - i; n > 0) {
            V centered = N::get_tail(xp + i, n, in.m) - in.m;
            V dz = in(N::get_tail(g + i, n, zero), centered, R ? N::get_tail(r + i, n, zero) : zero,
                      In::kReadsBits ? get_bits_tail(bits + i / 8, n) : 0);
            if (to.dx) N::put_tail(to.dx + i, fma(sb, centered * rs, fma(sa, dz, sc)), n);
            if (to.dz) N::put_tail(to.dz + i, dz, n);
        }
    }

    void write(const In& in, Slope<Scalar> slope, double rstd_c, const Segment& seg, Target to, int64_t next = 0) const {
        streamable(to) ? stretch<true>(in, slope, rstd_c, seg, to, next)
                       : stretch<false>(in, slope, rstd_c, seg, to, next);
    }

    // Constants of dx from the channel's sums; writes dweight and dbias when `record`.
    Slope<Scalar> finish_channel(int64_t c, Sums found, bool record) const {
        const GradientSums sums = center<Scalar>(mean(c), rstd(c), found.sum, found.squares);
        if (record) {
            a.dweight.put(c, sums.dz_xhat);
            a.dbias.put(c, sums.dz);
        }
        const double w = a.weight.at(c, 1.0);
        if (!a.training) return {Scalar(w * rstd(c)), Scalar(0), Scalar(0)};
        return slope<Scalar>(mean(c), rstd(c), w, sums, a.values());
    }

    void output(int64_t c, Slope<Scalar> slope, int64_t begin, int64_t end) const {
        if (dx || dresidual) output(c, slope, begin, end, incoming(c), rstd(c));
    }

    void output(int64_t c, Slope<Scalar> slope, int64_t begin, int64_t end, const In& in, double rstd_c) const {
        for (int64_t k = end - 1; k >= begin; --k) {
            const Segment seg = segment_at(s, plan, c, k);
            write(in, slope, rstd_c, seg, target(seg.offset));
        }
    }

    // The sums of kRows rows of one channel, one below the other.
    template <int kRows> NK_INLINE void row_sums(const In& in, int64_t c, int64_t n, LaneSums& to) const {
        const V zero = N::set(0);
        const D2 m = widen(in.m);
        const int64_t row = n * s.c + c, at = row * s.s, stride = s.c * s.s, bit_stride = s.c * s.bit_row();
        const T *g = dy + at, *xp = x + at, *r = residual_at(at);
        const uint8_t* bits = bits_at(row * s.bit_row());
        const T *output = dx && !stream ? dx + at : xp, *output_dz = dresidual && !stream ? dresidual + at : xp;
        LaneSums t = to;
        int64_t i = 0;
        for (; i + kLanes <= s.s; i += kLanes)
            repeat<kRows>([&](auto u) {
                const T *gu = g + u * stride + i, *xu = xp + u * stride + i;
                prefetch(output + u * stride + i);
                if (R || In::kReadsBits) prefetch(output_dz + u * stride + i);
                const D2 centered = N::get_wide(xu) - m;
                if constexpr (G == Gate::kOpen) {
                    const D2 dz = N::get_wide(gu);
                    return t.template add<u>(dz, dz, centered);
                }
                const D2 dz = widen(in(N::get(gu, 0), N::get(xu, 0) - in.m, R ? N::get(r + u * stride + i, 0) : zero,
                                       In::kReadsBits ? get_bits(bits + u * bit_stride + i / 8) : 0));
                t.template add<u>(dz, dz, centered);
            });
        if (const int64_t left = s.s - i; left > 0)  // the tail's dy is zero: its lanes add nothing
            repeat<kRows>([&](auto u) {
                const V xv = N::get_tail(xp + u * stride + i, left, in.m);
                const V dz = in(N::get_tail(g + u * stride + i, left, zero), xv - in.m,
                                R ? N::get_tail(r + u * stride + i, left, zero) : zero,
                                In::kReadsBits ? get_bits_tail(bits + u * bit_stride + i / 8, left) : 0);
                if (left <= kDoubles)
                    return t.template add_low<u>(widen(dz).a, widen(dz).a, widen(xv).a - m.a);
                t.template add<u>(widen(dz), widen(dz), widen(xv) - m);
            });
        to = t;
    }

    void block(int64_t first, int64_t last, bool sums_wanted, int64_t next) const {
        Slope<Scalar> slopes[kGroupMax];
        LaneSums lanes[kGroupMax];
        for (int64_t c = first; c < last; ++c) lanes[c - first].clear();
        if (sums_wanted)
            for_row_groups(s.n, [&](int64_t n, auto rows) {
                for (int64_t c = first; c < last; ++c) row_sums<rows>(incoming(c), c, n, lanes[c - first]);
            });
        for (int64_t c = first; c < last; ++c) {
            const Sums found = lanes[c - first].sums();
            slopes[c - first] = finish_channel(c, {found.sum, found.squares * rstd(c)}, true);
        }
        if (dx || dresidual)
            for_row_groups_backwards(s.n, [&](int64_t n, auto rows) {
                staged ? write_rows<true, rows>(first, last, n, slopes, next)
                       : write_rows<false, rows>(first, last, n, slopes, next);
            });
    }

    template <bool Staged, int kRows>
    void write_rows(int64_t first, int64_t last, int64_t n, const Slope<Scalar>* slopes, int64_t next) const {
        alignas(64) T stage_dx[kRows][kStage], stage_dz[kRows][kStage];
        for (int64_t c = first; c < last; ++c) {
            const In in = incoming(c);
            const int64_t at = (c - first) * s.s;
            for (int u = 0; u < kRows; ++u) {
                const Segment seg = whole_row(s, c, n + u);
                if (Staged)
                    stretch<false>(in, slopes[c - first], rstd(c), seg,
                                   {dx ? stage_dx[u] + at : nullptr, dresidual ? stage_dz[u] + at : nullptr}, next);
                else write(in, slopes[c - first], rstd(c), seg, target(seg.offset), next);
            }
        }
        if (Staged)
            for (int u = 0; u < kRows; ++u) {
                const int64_t at = ((n + u) * s.c + first) * s.s, count = (last - first) * s.s;
                if (dx) stream_run(dx + at, stage_dx[u], count);
                if (dresidual) stream_run(dresidual + at, stage_dz[u], count);
            }
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = 2 * s.elements() * int64_t(sizeof(T));
        const bool sums_wanted = a.training || a.dweight.data || a.dbias.data;
        auto cut = [&](int64_t p) { return plan.segments * p / plan.parts; };
        if (plan.parts == 1) {
            parallel(plan.tasks(s.c), bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t)
                    block(t * plan.group, std::min(s.c, (t + 1) * plan.group), sums_wanted,
                          t + 1 < end ? plan.group * s.s : 0);
                if (stream) stream_fence();
            });
            return;
        }
        double* partial = scratch(2 * s.c * plan.parts);
        if (sums_wanted)
            parallel(s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) {
                    int64_t p = t % plan.parts;
                    Sums found = sums(t / plan.parts, cut(p), cut(p + 1));
                    partial[2 * t] = found.sum;
                    partial[2 * t + 1] = found.squares;
                }
            });
        parallel(s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = end - 1; t >= begin; --t) {
                int64_t c = t / plan.parts, p = t % plan.parts;
                Sums found;
                if (sums_wanted)
                    for (int64_t q = c * plan.parts; q < (c + 1) * plan.parts; ++q)
                        found.add({partial[2 * q], partial[2 * q + 1]});
                output(c, finish_channel(c, found, p == 0), cut(p), cut(p + 1));
            }
            if (stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
