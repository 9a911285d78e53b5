// Constant statistics, layout (N, C, S): the backward of batch norm in evaluation. dx = a * dz waits for no sum, so
// memory is walked once, in its own order, and gives dx, dresidual and the sums of dweight and dbias together.
//
// A task is a stretch of the segments (rows, or pieces of long ones) of some samples. It adds the sums of each segment
// over its samples; they are merged in task order.
#pragma once
#include "channel_planar_backward.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G, bool R> struct PlanarFrozen {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    using Planes = PlanarBackward<T, G, R>;
    using In = typename Planes::In;
    using Target = typename Planes::Target;
    using Source = typename Planes::Stretch::Source;

    static constexpr int64_t kTasks = 16, kTaskElements = 2048;  // so many tasks, where none gets too small for it
    static constexpr int64_t kAhead = 1024;                      // elements fetched ahead
    static constexpr int64_t kTogether = 100;                    // shorter rows are taken four together

    const ChannelBackward& a;
    const Shape& s;
    const Planes planes;
    const bool sums_wanted, stream, together;
    const int64_t per_row, segments;  // segments of a row, of a sample
    const int64_t samples, parts;     // how many stretches of samples there are, and parts of each sample
    const int64_t plane;              // of the sums of one stretch of samples, padded

    explicit PlanarFrozen(const ChannelBackward& a_)
        : a(a_), s(a_.shape), planes(a_), sums_wanted(a_.dweight.data || a_.dbias.data), stream(planes.stream),
          together(!stream && s.s < kTogether), per_row(std::max<int64_t>(1, (s.s + kSegment - 1) / kSegment)),
          segments(s.c * per_row),
          samples(std::max<int64_t>(1, std::min(kTasks, s.n / (together ? kRowsAtOnce : 1)))),
          parts(std::max<int64_t>(1, std::min({(kTasks + samples - 1) / samples, segments, s.c * s.s / kTaskElements}))),
          plane(segments + kLanes) {}

    // Of one segment, as values of its own: what lies in a class the compiler looks up again after each store.
    struct Constants {
        In in;
        V rstd, a;
        D2 m;
        bool sums, streamed;
        const T *next_dx, *next_dz;  // whose lines are fetched: those of the outputs, where they are not streamed
    };

    // Vectors of `count` elements, kLanes or a tail of less: kVectors of them `stride` elements apart.
    template <int kVectors>
    static NK_INLINE void step(const Constants& k, const Rows& at, const Source& from, Target to, int64_t i, int64_t count,
                               LaneSums& t) {
        const bool whole = count == kLanes;
        auto read = [&](const T* p, V fill) NK_IN_PLACE { return whole ? N::get(p, 0) : N::get_tail(p, count, fill); };
        auto put = [&](T* p, V v) NK_IN_PLACE {
            if (!whole) N::put_tail(p, v, count);
            else k.streamed ? N::put_stream(p, v) : N::put(p, v);
        };
        ShortProducts<kVectors> terms;
        repeat<kVectors>([&](auto u) NK_IN_PLACE {
            const int64_t here = i + u * at.stride;
            const uint8_t* signs = In::kReadsBits ? from.bits + i / 8 + u * at.bit_stride : nullptr;
            prefetch(from.dy + here + kAhead);
            prefetch(k.next_dx + here + kAhead);
            if (R || In::kReadsBits) prefetch(k.next_dz + here + kAhead);
            V x = k.in.m;
            if (G != Gate::kOpen || k.sums) prefetch(from.x + here + kAhead), x = read(from.x + here, x);
            const V dz = k.in(read(from.dy + here, N::set(0)), x - k.in.m, R ? read(from.r + here, N::set(0)) : x,
                              !In::kReadsBits ? 0 : whole ? get_bits(signs) : get_bits_tail(signs, count));
            if (to.dx) put(to.dx + here, k.a * dz);
            if (to.dz) put(to.dz + here, dz);
            if constexpr (kShortProducts<T>) return terms.template add<u>(dz, (x - k.in.m) * k.rstd);
            if (!k.sums) return;
            const D2 wide = whole && G == Gate::kOpen ? N::get_wide(from.dy + here) : widen(dz);
            if (count <= kDoubles) return t.template add_low<u>(wide.a, wide.a, widen(x).a - k.m.a);
            t.template add<u>(wide, wide, (whole ? N::get_wide(from.x + here) : widen(x)) - k.m);
        });
        if constexpr (kShortProducts<T>)
            if (k.sums) t.total0 = t.total0 + widen(terms.total()), t.dot0 = t.dot0 + widen(terms.dot());
    }

    // One run, four vectors at a time; or the short rows of kRows samples side by side.
    template <int kRows> NK_INLINE LaneSums run(const Columns<Scalar>& columns, int64_t c, const Rows& at, Target to) const {
        constexpr int64_t kStep = kRowsAtOnce * kLanes;
        const Source from = planes.source(at);
        const Rows vectors{at.offset, at.length, at.bit_byte, kLanes, kLanes / 8};
        const In in = planes.incoming(columns, c);
        const Constants k{in, N::set(columns.rstd[c]), N::set(columns.a[c]), widen(in.m), sums_wanted,
                          kRows == 1 && planes.streamable(to), to.dx && !stream ? to.dx : from.dy,
                          to.dz && !stream ? to.dz : from.dy};
        LaneSums t;
        int64_t i = 0;
        if (kRows == 1)
            for (; i + kStep <= at.length; i += kStep) step<kRowsAtOnce>(k, vectors, from, to, i, kLanes, t);
        for (; i + kLanes <= at.length; i += kLanes) step<kRows>(k, at, from, to, i, kLanes, t);
        if (i < at.length) step<kRows>(k, at, from, to, i, at.length - i, t);
        return t;
    }

    // Segments [begin, end) of kRows samples, at most kGroupMax of them; staged outputs lie one behind the other.
    template <int kRows>
    void block(const Columns<Scalar>& columns, int64_t n, int64_t begin, int64_t end, double* found) const {
        alignas(64) T stage_dx[kStage], stage_dz[kStage];
        const Target out = planes.target((n * s.c + begin) * s.s);
        BlockSums sums(end - begin);
        for (int64_t j = begin; j < end; ++j) {
            int64_t c = j, from = 0;
            if (per_row > 1) c = j / per_row, from = j % per_row * kSegment;
            const int64_t row = n * s.c + c;
            const Rows at{row * s.s + from, std::min(kSegment, s.s - from), row * s.bit_row() + from / 8, s.c * s.s,
                          s.c * s.bit_row()};
            const int64_t in_stage = (j - begin) * s.s;
            const Target stage{out.dx ? stage_dx + in_stage : nullptr, out.dz ? stage_dz + in_stage : nullptr};
            const Target to = planes.staged ? stage : planes.target(at.offset);
            sums.template add<kRowsAtOnce>(j - begin, run<kRows>(columns, c, at, to));
        }
        const int64_t elements = (end - begin) * s.s;
        if (planes.staged && out.dx) stream_run(out.dx, stage_dx, elements);
        if (planes.staged && out.dz) stream_run(out.dz, stage_dz, elements);
        if (!sums_wanted) return;
        sums.close(end - begin);
        for (int64_t i = 0; begin + i < end; i += kLanes) {
            double *total = found + begin + i, *dot = total + plane;
            store_head(total, load_head(total, end - begin - i) + load2(sums.total + i), end - begin - i);
            store_head(dot, load_head(dot, end - begin - i) + load2(sums.dot + i), end - begin - i);
        }
    }

    // The constants of all channels.
    Columns<Scalar> constants(double* memory) const {
        const Columns<Scalar> made(memory, s.c);
        planes.input_constants(0, s.c, made);
        for (int64_t c = 0; c < s.c; c += kLanes)
            store_as(made.a + c, param_at(a.weight, c, s.c, 1.0) * load_head(a.stats + 2 * s.c + c, s.c - c));
        return made;
    }

    // dweight and dbias of kLanes channels from c on; found: (samples, 2, plane).
    void parameters(const Columns<Scalar>& columns, const double* found, int64_t c) const {
        D2 dz = zero2(), dot = zero2();
        for (int64_t p = 0; p < samples; ++p) {
            const double* sums = found + 2 * p * plane;
            if (per_row == 1) {
                dz = dz + load2(sums + c), dot = dot + load2(sums + plane + c);
                continue;
            }
            double t[kLanes] = {}, u[kLanes] = {};
            for (int64_t j = c * per_row; j < std::min(segments, (c + kLanes) * per_row); ++j)
                t[j / per_row - c] += sums[j], u[j / per_row - c] += sums[plane + j];
            dz = dz + load2(t), dot = dot + load2(u);
        }
        const D2 mean = load_head(a.stats + c, s.c - c), rstd = load_head(a.stats + 2 * s.c + c, s.c - c);
        put_param(a.dweight, c, s.c, columns.center(c, mean, rstd, dz, planes.dots(columns, c, dot)));
        put_param(a.dbias, c, s.c, dz);
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = 2 * s.elements() * int64_t(sizeof(T));
        const int64_t at_once = planes.staged ? std::min(kGroupMax, kStage / s.s) : kGroupMax;
        double* found = scratch(2 * samples * plane + Columns<Scalar>::doubles(s.c));
        const Columns<Scalar> columns = constants(found + 2 * samples * plane);
        parallel(samples * parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const int64_t p = t / parts, q = t % parts;
                const int64_t first = segments * q / parts, last = segments * (q + 1) / parts;
                double* sums = found + 2 * p * plane;
                for (double* to : {sums, sums + plane}) std::fill(to + first, to + last, 0.0);
                const int64_t from = s.n * p / samples, to = s.n * (p + 1) / samples;
                auto blocks = [&](int64_t n, auto rows) {
                    for (int64_t j = first; j < last; j += at_once)
                        block<decltype(rows)::value>(columns, from + n, j, std::min(last, j + at_once), sums);
                };
                int64_t n = 0;
                for (; together && n + kRowsAtOnce <= to - from; n += kRowsAtOnce)
                    blocks(n, std::integral_constant<int, kRowsAtOnce>{});
                for (; n < to - from; ++n) blocks(n, std::integral_constant<int, 1>{});
            }
            if (stream) stream_fence();
        });
        if (sums_wanted)
            for (int64_t c = 0; c < s.c; c += kLanes) parameters(columns, found, c);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
