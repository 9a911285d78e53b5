// Statistics across the batch, layout (N, C, S): the forward of batch norm.
//
// A task sweeps its block of channels twice: the sums, then the output while the slab is still in L2 (8 bytes an element
// forward, 12 backward). When a channel is cut into parts, all sums come first, in one parallel loop, and each task of
// the second loop merges the parts of its channel in order. No x-hat is stored, no activation is kept: both are
// recomputed from x.
//
// Memory never rests: the first sweep of a block fetches the lines that its second sweep writes, the second sweep
// fetches the input of the next block, which lies right behind in memory.
#pragma once
#include "parallel.h"
#include "planar_stretch.h"
#include "scratch.h"
#include "short_sums.h"

namespace normkit {
namespace NK_ISA {

template <class T> NK_INLINE double planar_shift(const T* x, const Shape& s, int64_t c) {
    if (kShortSums<T>) return 0.0;
    auto at = [&](int64_t n, int64_t i) { return value_of(x[(n * s.c + c) * s.s + i]); };
    return median_in_lanes(at(0, 0), at(s.n / 2, s.s / 2), at(s.n - 1, s.s - 1));
}

// S(x - k) and S(x - k)^2 of kRows rows, `stride` elements apart; the lines of `output` are fetched on the way.
template <int kRows, class T>
NK_INLINE void add_wide_rows(LaneSums& to, const T* x, int64_t stride, int64_t length, double k, const T* output) {
    using N = Num<T>;
    const D2 shift = {set1(k), set1(k)};
    LaneSums t = to;
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes)
        repeat<kRows>([&](auto u) NK_IN_PLACE {
            prefetch(output + u * stride + i);
            const D2 d = N::get_wide(x + u * stride + i) - shift;
            t.template add<u>(d, d, d);
        });
    if (const int64_t left = length - i; left > 0)
        repeat<kRows>([&](auto u) NK_IN_PLACE {
            const auto v = N::get_tail(x + u * stride + i, left, N::set(k));
            if (left <= kDoubles) {
                const vd d = widen(v).a - shift.a;
                return t.template add_low<u>(d, d, d);
            }
            const D2 d = widen(v) - shift;
            t.template add<u>(d, d, d);
        });
    to = t;
}

// The same of four vectors about zero, added in float32 first: two and two of the terms of S x, four of S x^2.
NK_INLINE void add_short(vf v0, vf v1, vf v2, vf v3, LaneSums& to) { add_four(v0, v1, v2, v3, to.total0, to.dot0); }
#if NK_LEVEL == 2
NK_INLINE void add_short(Pairs v0, Pairs v1, Pairs v2, Pairs v3, LaneSums& to) {
    add_four(v0.even, v0.odd, v1.even, v1.odd, to.total0, to.dot0);
    add_four(v2.even, v2.odd, v3.even, v3.odd, to.total1, to.dot1);
}
#endif

// The same of four rows.
template <class T> NK_INLINE void add_short_rows(LaneSums& to, const T* x, int64_t stride, int64_t length, const T* output) {
    using N = Num<InRow<T>>;
    LaneSums t = to;
    auto column = [&](int64_t i, auto&& read) NK_IN_PLACE {
        auto row = [&](int64_t u) NK_IN_PLACE {
            prefetch(output + u * stride + i);
            return read(x + u * stride + i);
        };
        const auto v0 = row(0), v1 = row(1), v2 = row(2), v3 = row(3);
        add_short(v0, v1, v2, v3, t);
    };
    int64_t i = 0;
    for (; i + N::kCount <= length; i += N::kCount) column(i, [](const T* p) NK_IN_PLACE { return N::get(p, 0); });
    if (i < length) column(i, [&](const T* p) NK_IN_PLACE { return N::get_tail(p, length - i, N::set(0)); });
    to = t;
}

// The same of what is left of a run: less than four vectors.
template <class T> NK_INLINE void add_short_rest(LaneSums& to, const T* x, int64_t length) {
    using N = Num<InRow<T>>;
    auto read = [&](int64_t i) NK_IN_PLACE {
        const int64_t left = length - i;
        return left >= N::kCount ? N::get(x + i, 0) : left > 0 ? N::get_tail(x + i, left, N::set(0)) : N::set(0);
    };
    const auto v0 = read(0), v1 = read(N::kCount), v2 = read(2 * N::kCount), v3 = read(3 * N::kCount);
    add_short(v0, v1, v2, v3, to);
}

template <int kRows, class T>
NK_INLINE void add_rows(LaneSums& to, const T* x, int64_t stride, int64_t length, double k, const T* output) {
    if constexpr (kShortSums<T> && kRows == kShort) add_short_rows(to, x, stride, length, output);
    else add_wide_rows<kRows>(to, x, stride, length, k, output);
}

// The same of one run. Long ones as four rows one behind the other: memory sends four streams faster than one.
template <class T> NK_INLINE void add_run(LaneSums& to, const T* x, int64_t length, double k, const T* output) {
    constexpr int64_t kVector = Num<InRow<T>>::kCount, kStep = kRowsAtOnce * kVector;
    if (length >= kLongRun) {
        const int64_t quarter = length / kStep * kVector;
        add_rows<kRowsAtOnce>(to, x, quarter, quarter, k, output);
        x += kRowsAtOnce * quarter, output += kRowsAtOnce * quarter, length -= kRowsAtOnce * quarter;
    }
    int64_t i = 0;
    for (; i + kStep <= length; i += kStep) add_rows<kRowsAtOnce>(to, x + i, kVector, kVector, k, output + i);
    if (i == length) return;
    if constexpr (kShortSums<T>) add_short_rest(to, x + i, length - i);
    else add_rows<1>(to, x + i, 0, length - i, k, output + i);
}

// The same of one run about zero, in double whatever the type: where short sums were out of range.
template <class T> __attribute__((noinline)) void add_wide_run(LaneSums& to, const T* x, int64_t length) {
    add_wide_rows<1>(to, x, 0, length, 0.0, x);
}

// Short rows that start anywhere are streamed by way of a stage: whole lines, and no line by two kinds of store.
inline bool stages(const Shape& s) { return s.s < kShortRow && s.s % kLanes != 0; }

// Outputs that outgrow the cache bypass it. Below, the next layer finds its input in cache, and an allocator that hands
// out memory just freed hands out cached lines, which streaming stores would first throw out. A residual is one stream
// more in each pass; a stage costs a copy.
inline bool streams(const Shape& s, int64_t element_bytes, bool residual) {
    const int64_t least = stages(s) ? (residual ? 14 : 28) : (residual ? 6 : 14);
    return s.elements() * element_bytes >= least << 20;
}

template <class T, Act A, bool R> struct PlanarForward {
    using N = Num<T>;
    using Scalar = typename N::Scalar;
    using Stretch = ForwardStretch<T, A, R>;
    static constexpr int kVector = Stretch::N::kCount;

    const ChannelForward& a;
    const Shape& s;
    const PlanarPlan plan;
    const T *x, *residual;
    T* y;
    const bool stream, staged;

    explicit PlanarForward(const ChannelForward& a_)
        : a(a_), s(a_.shape), plan(plan_planar(a_.shape, sizeof(T))), x(static_cast<const T*>(a_.x)),
          residual(static_cast<const T*>(a_.residual)), y(static_cast<T*>(a_.y)),
          stream(streams(a_.shape, sizeof(T), R)), staged(stream && stages(a_.shape)) {}

    NK_INLINE void write(const Stretch& stretch, const Rows& at, T* to, bool streaming, Ahead ahead) const {
        const T* r = R ? residual + at.offset : nullptr;
        uint8_t* bits = a.bits ? a.bits + at.bit_byte : nullptr;
        if (streaming && aligned_for_stream(to)) stretch.template run<true>(x + at.offset, r, to, bits, at.length, ahead);
        else stretch.template run<false>(x + at.offset, r, to, bits, at.length, ahead);
    }

    // `count` rows one behind the other in memory, each with constants of its own.
    void write_rows(const Columns<Scalar>& columns, int64_t row, int64_t count, T* to, bool streaming, Ahead ahead) const {
        Rows at{row * s.s, s.s, row * s.bit_row()};
        if (!streaming && !(R && a.bits) && kVector <= s.s && s.s < kShortRow) {
            const T *xp = x + at.offset, *r = R ? residual + at.offset : xp;
            return for_flat<kVector>(
                count, s.s, up_to_aligned(to),
                [&](int64_t i) NK_IN_PLACE { return Stretch(a.activation, columns, i); },
                [&](const Stretch& k, int64_t i) NK_IN_PLACE {
                    k.template vector<false>(xp + i, r + i, to + i, nullptr, ahead);
                },
                [&](const Stretch& k, int64_t i, int64_t n) NK_IN_PLACE { k.tail(xp + i, r + i, to + i, nullptr, n); });
        }
        for (int64_t i = 0; i < count; ++i) {
            write(Stretch(a.activation, columns, i), at, to, streaming, ahead);
            at.offset += s.s, at.bit_byte += s.bit_row(), to += s.s;
        }
    }

    // Adds the sums of kRows rows of channels [first, last). Apart from its caller, which has three forms of it, for the
    // registers' sake.
    template <int kRows>
    __attribute__((noinline)) void sum_rows(int64_t first, int64_t last, int64_t n, const double* k, BlockSums& sums) const {
        const int64_t at = (n * s.c + first) * s.s, stride = s.c * s.s, length = s.s;
        const T *p = x + at, *output = (stream || !y ? x : y) + at;
        for (int64_t c = 0; c < last - first; ++c) {
            LaneSums lanes;
            add_rows<kRows>(lanes, p, stride, length, k[c], output);
            sums.add<kRows>(c, lanes);
            p += length, output += length;
        }
    }

    void block_sums(int64_t first, int64_t last, double* k, BlockSums& sums) const {
        for (int64_t c = first; c < last; ++c) k[c - first] = planar_shift(x, s, c);
        for_row_groups(s.n, [&](int64_t n, auto rows) { sum_rows<rows>(first, last, n, k, sums); });
        sums.close(last - first);
        if constexpr (kShortSums<T>)
            for (int64_t c = first; c < last; ++c)
                if (!in_range(sums.dot[c - first])) {
                    LaneSums lanes;
                    for (int64_t n = 0; n < s.n; ++n) add_wide_run(lanes, x + (n * s.c + c) * s.s, s.s);
                    const Sums again = lanes.sums();
                    sums.total[c - first] = again.sum, sums.dot[c - first] = again.squares;
                }
    }

    // Statistics of channels [first, last) from their sums, and the constants of y.
    void constants(int64_t first, int64_t last, const double* k, const BlockSums& sums,
                   const Columns<Scalar>& columns) const {
        for (int64_t i = 0; first + i < last; i += kLanes) {
            const int64_t c = first + i;
            const Statistics2 st = finish(load2(sums.total + i), load2(sums.dot + i), load2(k + i), s.count(), a.eps);
            write_statistics(a.stats, c, last, s.c, st);
            columns.set_affine(i, st.mean, st.rstd, param_at(a.weight, c, last, 1.0), param_at(a.bias, c, last, 0.0));
        }
    }

    // next: elements from this block to the thread's next one, 0 for its last.
    void block(int64_t first, int64_t last, int64_t next) const {
        const Ahead ahead{next, 0};
        alignas(64) double memory[Columns<Scalar>::doubles(kGroupMax)];
        const Columns<Scalar> columns(memory, kGroupMax);
        double k[kGroupMax] = {};
        BlockSums sums(last - first);
        block_sums(first, last, k, sums);
        constants(first, last, k, sums, columns);
        if (y == nullptr) return;
        alignas(64) T stage[kStage];
        for (int64_t n = s.n - 1; n >= 0; --n) {  // the newest rows are still in cache
            T* to = y + (n * s.c + first) * s.s;
            write_rows(columns, n * s.c + first, last - first, staged ? stage : to, stream && !staged, ahead);
            if (staged) stream_run(to, stage, (last - first) * s.s);
        }
    }

    // Segments [begin, end) of one channel.
    Sums segment_sums(int64_t c, int64_t begin, int64_t end) const {
        const double k = planar_shift(x, s, c);
        LaneSums lanes;
        for (int64_t g = begin; g < end; ++g) {
            const Rows at = segment_at(s, plan, c, g);
            add_run(lanes, x + at.offset, at.length, k, (stream || !y || plan.parts > 1 ? x : y) + at.offset);
        }
        if (!kShortSums<T> || in_range(sum_lanes(lanes.dot()))) return lanes.sums();
        LaneSums again;
        for (int64_t g = begin; g < end; ++g) {
            const Rows at = segment_at(s, plan, c, g);
            add_wide_run(again, x + at.offset, at.length);
        }
        return again.sums();
    }

    // y of segments [begin, end) of one channel from its sums; its statistics are kept when `record`.
    void write_segments(int64_t c, Sums sums, int64_t begin, int64_t end, bool record, Ahead ahead) const {
        const Statistics st = finish(sums, planar_shift(x, s, c), s.count(), a.eps);
        if (record) write_statistics(a.stats, c, s.c, st);
        if (y == nullptr) return;
        const Stretch stretch(a.activation, affine<Scalar>(st.mean, st.rstd, a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
        for (int64_t g = end - 1; g >= begin; --g) {
            const Rows at = segment_at(s, plan, c, g);
            write(stretch, at, y + at.offset, stream, ahead);
        }
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = s.elements() * int64_t(sizeof(T));
        if (plan.parts > 1) return run_parts(parallel, bytes);
        parallel(plan.tasks(s.c), bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const int64_t next = t + 1 < end ? plan.group * s.s : 0;
                if (plan.group > 1) {
                    block(t * plan.group, std::min(s.c, (t + 1) * plan.group), next);
                } else {
                    write_segments(t, segment_sums(t, 0, plan.segments), 0, plan.segments, true, {next, 0});
                }
            }
            if (stream) stream_fence();
        });
    }

    void run_parts(const Parallel& parallel, int64_t bytes) const {
        double* partial = scratch(2 * s.c * plan.parts);
        auto cut = [&](int64_t p) { return plan.segments * p / plan.parts; };
        parallel(s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const Sums sums = segment_sums(t / plan.parts, cut(t % plan.parts), cut(t % plan.parts + 1));
                partial[2 * t] = sums.sum;
                partial[2 * t + 1] = sums.squares;
            }
        });
        parallel(s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = end - 1; t >= begin; --t) {
                const int64_t c = t / plan.parts, p = t % plan.parts;
                Sums sums;
                for (int64_t q = c * plan.parts; q < (c + 1) * plan.parts; ++q)
                    sums.add({partial[2 * q], partial[2 * q + 1]});
                write_segments(c, sums, cut(p), cut(p + 1), p == 0, {});
            }
            if (stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
