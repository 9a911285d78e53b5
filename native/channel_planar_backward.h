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
    const bool stream;

    explicit PlanarBackward(const ChannelBackward& a_)
        : a(a_), s(a_.shape), plan(plan_planar(a_.shape, 2 * sizeof(T))), dy(static_cast<const T*>(a_.dy)),
          x(static_cast<const T*>(a_.x)), residual(static_cast<const T*>(a_.residual)), dx(static_cast<T*>(a_.dx)),
          dresidual(static_cast<T*>(a_.dresidual)), stream(streams(a_.shape, sizeof(T))) {}

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

    template <bool Stream> void write(int64_t offset, V dz, V out) const {
        if (dx) Stream ? N::put_stream(dx + offset, out) : N::put(dx + offset, out);
        if (dresidual) Stream ? N::put_stream(dresidual + offset, dz) : N::put(dresidual + offset, dz);
    }

    template <bool Stream> void stretch(const In& in, Slope<Scalar> slope, double rstd_c, const Segment& seg) const {
        const V rs = N::set(rstd_c), sa = N::set(slope.a), sb = N::set(slope.b), sc = N::set(slope.c), zero = N::set(0);
        const T *g = dy + seg.offset, *xp = x + seg.offset, *r = residual_at(seg.offset);
        const uint8_t* bits = bits_at(seg.bit_byte);
        int64_t i = 0;
        for (; i + kLanes <= seg.length; i += kLanes) {
            V centered = N::get(xp + i, 0) - in.m;
            V dz = in(N::get(g + i, 0), centered, R ? N::get(r + i, 0) : zero,
                      In::kReadsBits ? get_bits(bits + i / 8) : 0);
            write<Stream>(seg.offset + i, dz, fma(sb, centered * rs, fma(sa, dz, sc)));
        }
        if (int64_t n = seg.length - i; n > 0) {
            V centered = N::get_tail(xp + i, n, in.m) - in.m;
            V dz = in(N::get_tail(g + i, n, zero), centered, R ? N::get_tail(r + i, n, zero) : zero,
                      In::kReadsBits ? get_bits_tail(bits + i / 8, n) : 0);
            if (dx) N::put_tail(dx + seg.offset + i, fma(sb, centered * rs, fma(sa, dz, sc)), n);
            if (dresidual) N::put_tail(dresidual + seg.offset + i, dz, n);
        }
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
        return slope<Scalar>(mean(c), rstd(c), w, sums, s.count());
    }

    void output(int64_t c, Slope<Scalar> slope, int64_t begin, int64_t end) const {
        if (dx || dresidual) output(c, slope, begin, end, incoming(c), rstd(c));
    }

    void output(int64_t c, Slope<Scalar> slope, int64_t begin, int64_t end, const In& in, double rstd_c) const {
        for (int64_t k = end - 1; k >= begin; --k) {
            const Segment seg = segment_at(s, plan, c, k);
            const bool can = stream && aligned_for_stream(a.dx ? dx + seg.offset : dresidual + seg.offset) &&
                             (!dresidual || aligned_for_stream(dresidual + seg.offset));
            can ? stretch<true>(in, slope, rstd_c, seg) : stretch<false>(in, slope, rstd_c, seg);
        }
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = 2 * s.elements() * int64_t(sizeof(T));
        const bool sums_wanted = a.training || a.dweight.data || a.dbias.data;
        auto cut = [&](int64_t p) { return plan.segments * p / plan.parts; };
        if (plan.parts == 1) {
            parallel(plan.tasks(s.c), bytes, [&](int64_t begin, int64_t end) {
                for (int64_t c = begin * plan.group; c < std::min(s.c, end * plan.group); ++c) {
                    Sums found = sums_wanted ? sums(c, 0, plan.segments) : Sums{};
                    output(c, finish_channel(c, found, true), 0, plan.segments);
                }
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
