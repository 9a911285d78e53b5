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
#include "activation.h"
#include "channel_plan.h"
#include "moments.h"
#include "parallel.h"
#include "planar_block.h"
#include "scratch.h"

namespace normkit {
namespace NK_ISA {

// One segment of one row: where it starts, its length, where its sign bits start.
struct Segment {
    int64_t offset, length, bit_byte;
};

NK_INLINE Segment whole_row(const Shape& s, int64_t c, int64_t n) {
    const int64_t row = n * s.c + c;
    return {row * s.s, s.s, row * s.bit_row()};
}

NK_INLINE Segment segment_at(const Shape& s, const PlanarPlan& plan, int64_t c, int64_t index) {
    if (plan.segments_per_row == 1) return whole_row(s, c, index);  // a division costs as much as half a short row
    const int64_t n = index / plan.segments_per_row, at = (index % plan.segments_per_row) * kSegment;
    const int64_t row = n * s.c + c;
    return {row * s.s + at, std::min(kSegment, s.s - at), row * s.bit_row() + at / 8};
}

template <class T> double planar_shift(const T* x, const Shape& s, int64_t c) {
    auto at = [&](int64_t n, int64_t i) { return value_of(x[(n * s.c + c) * s.s + i]); };
    return median_of_three(at(0, 0), at(s.n / 2, s.s / 2), at(s.n - 1, s.s - 1));
}

template <class T>
Sums planar_sums(const T* x, const Shape& shape, const PlanarPlan& plan, int64_t c, int64_t begin, int64_t end, double k) {
    using N = Num<T>;
    const D2 shift = {set1(k), set1(k)};
    const typename N::V fill = N::set(k);
    D2 s0 = zero2(), s1 = s0, q0 = s0, q1 = s0;
    for (int64_t g = begin; g < end; ++g) {
        Segment seg = segment_at(shape, plan, c, g);
        const T* p = x + seg.offset;
        int64_t i = 0;
        for (; i + 2 * kLanes <= seg.length; i += 2 * kLanes) {
            D2 d0 = widen(N::get(p + i, 0)) - shift, d1 = widen(N::get(p + i + kLanes, 0)) - shift;
            s0 = s0 + d0;
            s1 = s1 + d1;
            q0 = fma(d0, d0, q0);
            q1 = fma(d1, d1, q1);
        }
        if (i + kLanes <= seg.length) {
            D2 d = widen(N::get(p + i, 0)) - shift;
            s0 = s0 + d;
            q0 = fma(d, d, q0);
            i += kLanes;
        }
        if (i < seg.length) {
            D2 d = widen(N::get_tail(p + i, seg.length - i, fill)) - shift;
            s1 = s1 + d;
            q1 = fma(d, d, q1);
        }
    }
    return {sum_lanes(s0 + s1), sum_lanes(q0 + q1)};
}

template <class T> NK_INLINE bool aligned_for_stream(const T* p) {
    return (reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(T))) == 0;
}

// What a stretch fetches on its way: the input (and the output's lines) this many elements further on; 0: nothing new.
struct Ahead { int64_t input = 0, output = 0; };

// One stretch of n elements: y = act(fma(x - m, scale, shift) + residual).
template <class T, Act A, bool R> struct ForwardStretch {
    using N = Num<T>;
    using V = typename N::V;
    const ActivationSpec spec;
    V m, scale, shift;

    ForwardStretch(const ActivationSpec& spec_, Affine<typename N::Scalar> f)
        : spec(spec_), m(N::set(f.m)), scale(N::set(f.scale)), shift(N::set(f.shift)) {}

    NK_INLINE V before(V x, V r) const {
        V z = fma(x - m, scale, shift);
        return R ? z + r : z;
    }

    template <bool Stream> NK_INLINE int64_t body(const T* x, const T* r, T* y, uint8_t* bits, int64_t n, Ahead ahead) const {
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            prefetch(x + i + ahead.input);
            if (!Stream) prefetch(y + i + ahead.output);
            if (R) prefetch(r + i + ahead.input);
            V z = before(N::get(x + i, 0), R ? N::get(r + i, 0) : m);
            if (R && bits) put_bits(bits + i / 8, Activate<T>::sign(spec.code, z));
            V out = Activate<T>::template value<A>(spec, z);
            if (Stream) N::put_stream(y + i, out);
            else N::put(y + i, out);
        }
        return i;
    }

    NK_INLINE void operator()(const T* x, const T* r, T* y, uint8_t* bits, int64_t n, bool stream,
                               Ahead ahead = {}) const {
        int64_t i = stream && aligned_for_stream(y) ? body<true>(x, r, y, bits, n, ahead)
                                                    : body<false>(x, r, y, bits, n, ahead);
        if (i < n) {
            V z = before(N::get_tail(x + i, n - i, m), R ? N::get_tail(r + i, n - i, m) : m);
            if (R && bits) put_bits_tail(bits + i / 8, Activate<T>::sign(spec.code, z), n - i);
            N::put_tail(y + i, Activate<T>::template value<A>(spec, z), n - i);
        }
    }
};

// Outputs that outgrow the cache bypass it. Below, the next layer finds its input in cache, and an allocator that hands
// out memory just freed hands out cached lines, which streaming stores would first throw out. A residual is one stream
// more in each pass.
inline bool streams(const Shape& s, int64_t element_bytes, bool residual) {
    return s.elements() * element_bytes >= int64_t(residual ? 6 : 12) << 20;
}

// Short rows that start anywhere are streamed by way of a stage: whole lines, and no line by two kinds of store.
inline bool stages(const Shape& s) { return s.s < kShortRow && s.s % kLanes != 0; }

template <class T> Statistics given_statistics(const ChannelForward& a, int64_t c) {
    double mean = a.mean.at(c, 0.0), var = a.var.at(c, 1.0);
    return {mean, var, rstd_of(var, a.eps)};
}

template <class T, Act A, bool R> struct PlanarForward {
    using N = Num<T>;
    using Scalar = typename N::Scalar;
    using Stretch = ForwardStretch<T, A, R>;

    const ChannelForward& a;
    const Shape& s;
    const PlanarPlan plan;
    const T *x, *residual;
    T* y;
    const bool given, stream, staged;

    explicit PlanarForward(const ChannelForward& a_)
        : a(a_), s(a_.shape), plan(plan_planar(a_.shape, sizeof(T))), x(static_cast<const T*>(a_.x)),
          residual(static_cast<const T*>(a_.residual)), y(static_cast<T*>(a_.y)), given(a_.mean.data != nullptr),
          stream(streams(a_.shape, sizeof(T), R)), staged(stream && stages(a_.shape)) {}

    Stretch stretch_of(int64_t c, Statistics st) const {
        return Stretch(a.activation, affine<Scalar>(st.mean, st.rstd, a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
    }

    void apply(const Stretch& stretch, const Segment& seg, T* to, bool streaming, Ahead ahead = {}) const {
        stretch(x + seg.offset, R ? residual + seg.offset : nullptr, to, a.bits ? a.bits + seg.bit_byte : nullptr,
                seg.length, streaming, ahead);
    }

    // S(x - k) and S(x - k)^2 of kRows rows of one channel, one below the other.
    template <int kRows> NK_INLINE void row_sums(int64_t c, int64_t n, double k, LaneSums& to) const {
        const D2 shift = {set1(k), set1(k)};
        const int64_t at = (n * s.c + c) * s.s, stride = s.c * s.s;
        const T *p = x + at, *output = stream || !y ? p : y + at;
        LaneSums t = to;
        int64_t i = 0;
        for (; i + kLanes <= s.s; i += kLanes)
            repeat<kRows>([&](auto u) {
                prefetch(output + u * stride + i);
                const D2 d = N::get_wide(p + u * stride + i) - shift;
                t.template add<u>(d, d, d);
            });
        if (const int64_t left = s.s - i; left > 0)
            repeat<kRows>([&](auto u) {
                const auto v = N::get_tail(p + u * stride + i, left, N::set(k));
                if (left <= kDoubles) {
                    const vd d = widen(v).a - shift.a;
                    return t.template add_low<u>(d, d, d);
                }
                const D2 d = widen(v) - shift;
                t.template add<u>(d, d, d);
            });
        to = t;
    }

    void block_statistics(int64_t first, int64_t last, Statistics* found) const {
        LaneSums lanes[kGroupMax];
        double k[kGroupMax];
        for (int64_t c = first; c < last; ++c) {
            lanes[c - first].clear();
            k[c - first] = planar_shift(x, s, c);
        }
        for_row_groups(s.n, [&](int64_t n, auto rows) {
            for (int64_t c = first; c < last; ++c) row_sums<rows>(c, n, k[c - first], lanes[c - first]);
        });
        for (int64_t c = first; c < last; ++c)
            found[c - first] = finish(lanes[c - first].sums(), k[c - first], s.count(), a.eps);
    }

    // next: elements from this block to the thread's next one, 0 for its last.
    void block(int64_t first, int64_t last, int64_t next) const {
        const Ahead ahead{next, given && !stream ? next : 0};
        Statistics found[kGroupMax];
        if (!given) block_statistics(first, last, found);
        for (int64_t c = first; c < last; ++c) {
            if (given) found[c - first] = given_statistics<T>(a, c);
            write_statistics(a.stats, c, s.c, found[c - first]);
        }
        if (y == nullptr) return;
        for_row_groups_backwards(s.n, [&](int64_t n, auto rows) {
            alignas(64) T stage[rows][kStage];
            for (int64_t c = first; c < last; ++c) {
                const Stretch stretch = stretch_of(c, found[c - first]);
                for (int u = 0; u < rows; ++u) {
                    const Segment seg = whole_row(s, c, n + u);
                    if (staged) apply(stretch, seg, stage[u] + (c - first) * s.s, false, ahead);
                    else apply(stretch, seg, y + seg.offset, stream, ahead);
                }
            }
            if (staged)
                for (int u = 0; u < rows; ++u)
                    stream_run(y + ((n + u) * s.c + first) * s.s, stage[u], (last - first) * s.s);
        });
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = s.elements() * int64_t(sizeof(T));
        if (plan.parts > 1) return run_parts(parallel, bytes);
        parallel(plan.tasks(s.c), bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t)
                block(t * plan.group, std::min(s.c, (t + 1) * plan.group), t + 1 < end ? plan.group * s.s : 0);
            if (stream) stream_fence();
        });
    }

    void run_parts(const Parallel& parallel, int64_t bytes) const {
        double* partial = scratch(2 * s.c * plan.parts);
        auto cut = [&](int64_t p) { return plan.segments * p / plan.parts; };
        if (!given)
            parallel(s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) {
                    int64_t c = t / plan.parts, p = t % plan.parts;
                    Sums sums = planar_sums(x, s, plan, c, cut(p), cut(p + 1), planar_shift(x, s, c));
                    partial[2 * t] = sums.sum;
                    partial[2 * t + 1] = sums.squares;
                }
            });
        parallel(s.c * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = end - 1; t >= begin; --t) {
                int64_t c = t / plan.parts, p = t % plan.parts;
                Statistics st;
                if (given) {
                    st = given_statistics<T>(a, c);
                } else {
                    Sums sums;
                    for (int64_t q = c * plan.parts; q < (c + 1) * plan.parts; ++q)
                        sums.add({partial[2 * q], partial[2 * q + 1]});
                    st = finish(sums, planar_shift(x, s, c), s.count(), a.eps);
                }
                if (p == 0) write_statistics(a.stats, c, s.c, st);
                if (y == nullptr) continue;
                const Stretch stretch = stretch_of(c, st);
                for (int64_t g = cut(p + 1) - 1; g >= cut(p); --g) {
                    const Segment seg = segment_at(s, plan, c, g);
                    apply(stretch, seg, y + seg.offset, stream);
                }
            }
            if (stream) stream_fence();
        });
    }
};

template <class T, Act A, bool R> void planar_forward(const ChannelForward& a, const Parallel& parallel) {
    PlanarForward<T, A, R>(a).run(parallel);
}

}  // namespace NK_ISA
}  // namespace normkit
