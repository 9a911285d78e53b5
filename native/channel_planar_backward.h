// Statistics across the batch, layout (N, C, S): the backward of batch norm.
//
// First sweep: total = S dz and dot = S dz * (x - m) over the channel. Second sweep, from L2: dx = a * dz + b * xhat + c
// and, with a residual behind an activation, dresidual = dz. Constant statistics: planar_frozen.h.
#pragma once
#include "channel_planar.h"
#include "planar_gradient_sums.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G, bool R> struct PlanarBackward {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    using In = Incoming<T, G, R>;
    using Stretch = BackwardStretch<T, G, R>;
    using Inputs = PlanarGradientSums<T, G, R>;
    static constexpr int kVector = Stretch::N::kCount;

    const ChannelBackward& a;
    const Shape& s;
    const PlanarPlan plan;
    const T *dy, *x, *residual;
    T *dx, *dresidual;
    const bool stream, staged;
    const Inputs input;

    explicit PlanarBackward(const ChannelBackward& a_)
        : a(a_), s(a_.shape), plan(plan_planar(a_.shape, 2 * sizeof(T))), dy(static_cast<const T*>(a_.dy)),
          x(static_cast<const T*>(a_.x)), residual(static_cast<const T*>(a_.residual)), dx(static_cast<T*>(a_.dx)),
          dresidual(static_cast<T*>(a_.dresidual)), stream(streams(a_.shape, sizeof(T), a_.dresidual != nullptr)),
          staged(stream && stages(a_.shape)), input{dy, x, residual, a_.bits, fetched(dx), fetched(dresidual)} {}

    const T* fetched(const T* output) const { return output && !stream && plan.parts == 1 ? output : x; }

    double mean(int64_t c) const { return a.stats[c]; }
    double rstd(int64_t c) const { return a.stats[2 * s.c + c]; }
    Affine<Scalar> affine_of(int64_t c) const {
        return affine<Scalar>(mean(c), rstd(c), a.weight.at(c, 1.0), a.bias.at(c, 0.0));
    }
    static Affine<Scalar> affine_of(const Columns<Scalar>& k, int64_t i) { return {k.m[i], k.scale[i], k.shift[i]}; }
    // Not by way of affine_of(c): then GCC 12 orders the loads of float32's sums in another way, 5 to 8 % slower at 56x56.
    template <class To = In> To incoming(int64_t c) const {
        return To(a.activation, affine<Scalar>(mean(c), rstd(c), a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
    }
    template <class To = In> To incoming(const Columns<Scalar>& k, int64_t i) const {
        return To(a.activation, affine_of(k, i));
    }

    // Where a run's outputs go: null where not wanted.
    struct Target {
        T *dx, *dz;
    };
    Target target(int64_t offset) const { return {dx ? dx + offset : nullptr, dresidual ? dresidual + offset : nullptr}; }
    bool streamable(Target to) const {
        return stream && !staged && aligned_for_stream(to.dx ? to.dx : to.dz) && (!to.dz || aligned_for_stream(to.dz));
    }

    Stretch stretch(const Columns<Scalar>& k, int64_t i) const { return {a.activation, k, i}; }
    typename Stretch::Source source(const Rows& at) const {
        return {dy + at.offset, x + at.offset, R ? residual + at.offset : nullptr,
                In::kReadsBits ? a.bits + at.bit_byte : nullptr};
    }

    NK_INLINE void write_run(const Stretch& k, const Rows& at, Target to, int64_t next) const {
        streamable(to) ? k.template run<true>(source(at), to.dx, to.dz, at.length, next)
                       : k.template run<false>(source(at), to.dx, to.dz, at.length, next);
    }

    // `count` rows one behind the other in memory, each with constants of its own.
    void write_rows(const Columns<Scalar>& columns, int64_t row, int64_t count, Target to, int64_t next) const {
        Rows at{row * s.s, s.s, row * s.bit_row()};
        if constexpr (!In::kReadsBits)
            if (to.dx && !to.dz && kVector <= s.s && s.s < kShortRow && (!stream || staged)) {
                const typename Stretch::Source from = source(at);
                T* const into = to.dx;
                return for_flat<kVector>(
                    count, s.s, up_to_aligned(into), [&](int64_t i) NK_IN_PLACE { return stretch(columns, i); },
                    [&](const Stretch& k, int64_t i) NK_IN_PLACE {
                        k.template vector<false>(from, i, into, nullptr, next);
                    },
                    [&](const Stretch& k, int64_t i, int64_t n) NK_IN_PLACE { k.tail(from, i, into, nullptr, n); });
            }
        for (int64_t i = 0; i < count; ++i) {
            write_run(stretch(columns, i), at, to, next);
            at.offset += s.s, at.bit_byte += s.bit_row();
            if (to.dx) to.dx += s.s;
            if (to.dz) to.dz += s.s;
        }
    }

    // Adds the sums of `count` rows one behind the other, each with kRows - 1 below it in the next samples, and with its
    // constants at `from` and on.
    template <int kRows>
    __attribute__((noinline)) void sum_rows(int64_t row, int64_t count, const Columns<Scalar>& columns, int64_t from,
                                            BlockSums& sums) const {
        Rows at{row * s.s, s.s, row * s.bit_row(), s.c * s.s, s.c * s.bit_row()};
        for (int64_t i = 0; i < count; ++i) {
            LaneSums lanes;
            const auto in = incoming<typename Inputs::In>(columns, from + i);
            const auto rstd = Inputs::N::set(columns.rstd[from + i]);
            if constexpr (kShortProducts<T> && kRows == 1) input.add_run(in, rstd, at, lanes);
            else input.template add_rows<kRows>(in, rstd, at, lanes);
            sums.add<kRows>(i, lanes);
            at.offset += s.s, at.bit_byte += s.bit_row();
        }
    }

    // The constants of x - m, z and xhat of channels [first, last).
    void input_constants(int64_t first, int64_t last, const Columns<Scalar>& columns) const {
        for (int64_t i = 0; first + i < last; i += kLanes) {
            const int64_t c = first + i;
            const D2 mean2 = load_head(a.stats + c, last - c), rstd2 = load_head(a.stats + 2 * s.c + c, last - c);
            columns.set_affine(i, mean2, rstd2, param_at(a.weight, c, last, 1.0), param_at(a.bias, c, last, 0.0));
            store_as(columns.rstd + i, rstd2);
        }
    }

    // S dz * (x - m) from what add_rows made of kLanes channels.
    D2 dots(const Columns<Scalar>& columns, int64_t i, D2 found) const {
        return kShortProducts<T> ? unscaled(found, load_wide(columns.rstd + i)) : found;
    }

    // dweight and dbias of channels [first, last), and the constants of dx, from the sums.
    void output_constants(int64_t first, int64_t last, const BlockSums& sums, const Columns<Scalar>& columns) const {
        const D2 per_value = both_halves(-1.0 / double(a.values()));
        for (int64_t i = 0; first + i < last; i += kLanes) {
            const int64_t c = first + i;
            const D2 mean2 = load_head(a.stats + c, last - c), rstd2 = load_head(a.stats + 2 * s.c + c, last - c);
            const D2 dz = load2(sums.total + i), dot = dots(columns, i, load2(sums.dot + i));
            const D2 dz_xhat = columns.center(i, mean2, rstd2, dz, dot);
            put_param(a.dweight, c, last, dz_xhat);
            put_param(a.dbias, c, last, dz);
            const D2 weight = param_at(a.weight, c, last, 1.0), share = weight * per_value;
            columns.set_slope(i, mean2, rstd2, weight, share * dz, share * dz_xhat);
        }
    }

    void block(int64_t first, int64_t last, int64_t next) const {
        alignas(64) double memory[Columns<Scalar>::doubles(kGroupMax)];
        const Columns<Scalar> columns(memory, kGroupMax);
        BlockSums sums(last - first);
        input_constants(first, last, columns);
        for_row_groups(s.n, [&](int64_t n, auto rows) {
            sum_rows<rows>(n * s.c + first, last - first, columns, 0, sums);
        });
        sums.close(last - first);
        output_constants(first, last, sums, columns);
        if (!dx && !dresidual) return;
        alignas(64) T stage_dx[kStage], stage_dz[kStage];
        for (int64_t n = s.n - 1; n >= 0; --n) {  // the newest rows are still in cache
            const int64_t count = (last - first) * s.s;
            const Target to = target((n * s.c + first) * s.s);
            const Target stage{to.dx ? stage_dx : nullptr, to.dz ? stage_dz : nullptr};
            write_rows(columns, n * s.c + first, last - first, staged ? stage : to, next);
            if (staged && to.dx) stream_run(to.dx, stage_dx, count);
            if (staged && to.dz) stream_run(to.dz, stage_dz, count);
        }
    }

    // One channel: constants of dx from its sums; writes dweight and dbias when `record`.
    Slope<Scalar> finish_channel(int64_t c, Sums found, bool record) const {
        const GradientSums sums = center<Scalar>(mean(c), rstd(c), found.sum, found.squares * rstd(c));
        if (record) {
            a.dweight.put(c, sums.dz_xhat);
            a.dbias.put(c, sums.dz);
        }
        return slope<Scalar>(mean(c), rstd(c), a.weight.at(c, 1.0), sums, a.values());
    }

    Sums segment_sums(int64_t c, int64_t begin, int64_t end) const {
        const auto in = incoming<typename Inputs::In>(c);
        LaneSums lanes;
        for (int64_t g = begin; g < end; ++g) input.add_run(in, Inputs::N::set(rstd(c)), segment_at(s, plan, c, g), lanes);
        Sums sums = lanes.sums();
        if (kShortProducts<T>) sums.squares = unscaled(sums.squares, double(Scalar(rstd(c))));
        return sums;
    }

    // The outputs of segments [begin, end) of one channel from its sums; dweight and dbias when `record`.
    void write_segments(int64_t c, Sums found, int64_t begin, int64_t end, bool record, int64_t next) const {
        const Slope<Scalar> slope = finish_channel(c, found, record);
        if (!dx && !dresidual) return;
        const Stretch k(a.activation, affine_of(c), rstd(c), slope);
        for (int64_t g = end - 1; g >= begin; --g) {
            const Rows at = segment_at(s, plan, c, g);
            write_run(k, at, target(at.offset), next);
        }
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = 2 * s.elements() * int64_t(sizeof(T));
        if (plan.parts > 1) return run_parts(parallel, bytes);
        parallel(plan.tasks(s.c), bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const int64_t next = t + 1 < end ? plan.group * s.s : 0;
                if (plan.group > 1) {
                    block(t * plan.group, std::min(s.c, (t + 1) * plan.group), next);
                } else {
                    write_segments(t, segment_sums(t, 0, plan.segments), 0, plan.segments, true, next);
                }
            }
            if (stream) stream_fence();
        });
    }

    void run_parts(const Parallel& parallel, int64_t bytes) const {
        auto cut = [&](int64_t p) { return plan.segments * p / plan.parts; };
        double* partial = scratch(2 * s.c * plan.parts);
        parallel(s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const Sums found = segment_sums(t / plan.parts, cut(t % plan.parts), cut(t % plan.parts + 1));
                partial[2 * t] = found.sum;
                partial[2 * t + 1] = found.squares;
            }
        });
        parallel(s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = end - 1; t >= begin; --t) {
                const int64_t c = t / plan.parts, p = t % plan.parts;
                Sums found;
                for (int64_t q = c * plan.parts; q < (c + 1) * plan.parts; ++q)
                    found.add({partial[2 * q], partial[2 * q + 1]});
                write_segments(c, found, cut(p), cut(p + 1), p == 0, 0);
            }
            if (stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
