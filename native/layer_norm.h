// Statistics per row of `width` elements with parameters per element: layer norm and RMS norm.
//
// Forward: rows are summed and, four at a time from L1, written: y = fma(xhat, weight, bias),
// xhat = fma(x - m, rstd, -(mean - m) * rstd).
// Backward: per row S w dy and S w dy * xhat; then, four rows at a time from L1, dx and the sums of dweight and dbias
// (four rows added in the computing type, then into double). Blocks of rows are merged in block order. RMS norm is the
// same with mean = 0: its first sum is simply not used.
#pragma once
#include "channel_rows.h"
#include "group_planar_backward.h"

namespace normkit {
namespace NK_ISA {

constexpr int kRowsTogether = 4;

template <class Scalar> void expand(const Param& p, double absent, int64_t width, Scalar* out) {
    for (int64_t j = 0; j < width; ++j) out[j] = Scalar(p.at(j, absent));
}

template <class T> bool layer_streams(int64_t rows, int64_t width, const T* out) {
    return outgrows_cache(rows * width * int64_t(sizeof(T))) && width % kLanes == 0 && aligned_for_stream(out);
}

template <class T> struct LayerForwardKernel {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    const LayerForward& a;
    const T* x;
    T* y;

    explicit LayerForwardKernel(const LayerForward& a_) : a(a_), x(static_cast<const T*>(a_.x)), y(static_cast<T*>(a_.y)) {}

    // Shifted sums of one row; fetches the rows that come next.
    Sums sums(const T* row, double k) const {
        const D2 shift = both_halves(k);
        const int64_t ahead = kRowsTogether * a.width;
        D2 s0 = zero2(), s1 = s0, q0 = s0, q1 = s0;
        auto add = [&](V v, D2& s, D2& q) {
            const D2 d = widen(v) - shift;
            s = s + d;
            q = fma(d, d, q);
        };
        int64_t j = 0;
        for (; j + 2 * kLanes <= a.width; j += 2 * kLanes) {
            prefetch(row + ahead + j);
            prefetch(row + ahead + j + kLanes);
            add(N::get(row + j, 0), s0, q0);
            add(N::get(row + j + kLanes, 0), s1, q1);
        }
        for_columns(
            j, a.width, [&](int64_t i) { add(N::get(row + i, 0), s0, q0); },
            [&](int64_t i, int64_t n) { add(N::get_tail(row + i, n, N::set(k)), s1, q1); });
        return {sum_lanes(s0 + s1), sum_lanes(q0 + q1)};
    }

    Statistics statistics(const T* row) const {
        if (!a.rms) {
            const double k = run_shift(row, a.width);
            return finish(sums(row, k), k, a.width, a.eps);
        }
        const double square = sums(row, 0.0).squares / double(a.width);
        return {0.0, square, rstd_of(square, a.eps)};
    }

    // Rows [r, r + kRows): their statistics first, so that the chains of square roots and divisions overlap.
    template <int kRows, bool Bias, bool Stream> void write(int64_t r, const Scalar* w, const Scalar* b) const {
        V m[kRows], scale[kRows], shift[kRows];
        const int64_t width = a.width;
        const T* xp = x + r * width;
        T* yp = y + r * width;
        for (int u = 0; u < kRows; ++u) {
            const Statistics st = statistics(x + (r + u) * a.width);
            write_statistics(a.stats, r + u, a.rows, st);
            const Affine<Scalar> f = affine<Scalar>(st.mean, st.rstd, 1.0, 0.0);
            m[u] = N::set(f.m), scale[u] = N::set(f.scale), shift[u] = N::set(f.shift);
        }
        auto column = [&](int64_t j, auto&& read, auto&& put) {
            const V wj = N::get_constants(w + j), bj = N::get_constants(b + j);
            repeat<kRows>([&](auto u) {
                const int64_t at = u * width;
                if (!Stream) prefetch_to_write(yp + at + j + kRows * width);
                const V xhat = fma(read(xp + at + j) - m[u], scale[u], shift[u]);
                put(yp + at + j, Bias ? fma(xhat, wj, bj) : xhat * wj);
            });
        };
        for_columns(
            a.width,
            [&](int64_t j) {
                column(j, [](const T* p) { return N::get(p, 0); },
                       [](T* p, V v) { Stream ? N::put_stream(p, v) : N::put(p, v); });
            },
            [&](int64_t j, int64_t n) {
                column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                       [&](T* p, V v) { N::put_tail(p, v, n); });
            });
    }

    template <bool Bias, bool Stream> void rows(int64_t r, int64_t end, const Scalar* w, const Scalar* b) const {
        for (; r + kRowsTogether <= end; r += kRowsTogether) write<kRowsTogether, Bias, Stream>(r, w, b);
        for (; r < end; ++r) write<1, Bias, Stream>(r, w, b);
    }

    void run(const Parallel& parallel) const {
        const int64_t wide = padded(a.width);
        Scalar* w = reinterpret_cast<Scalar*>(scratch(2 * wide));
        Scalar* b = w + wide;
        expand(a.weight, 1.0, a.width, w);
        expand(a.bias, 0.0, a.width, b);
        const RowsPlan plan = plan_rows(a.rows, a.width);
        const bool stream = layer_streams(a.rows, a.width, y);
        parallel(plan.blocks, a.rows * a.width * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
            const int64_t first = plan.begin(begin), last = plan.end(end - 1);
            if (a.bias.data) stream ? rows<true, true>(first, last, w, b) : rows<true, false>(first, last, w, b);
            else stream ? rows<false, true>(first, last, w, b) : rows<false, false>(first, last, w, b);
            if (stream) stream_fence();
        });
    }
};

template <class T> struct LayerBackwardKernel {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    const LayerBackward& a;
    const T *dy, *x;
    T* dx;
    const int64_t wide;
    const bool stream;

    explicit LayerBackwardKernel(const LayerBackward& a_)
        : a(a_), dy(static_cast<const T*>(a_.dy)), x(static_cast<const T*>(a_.x)), dx(static_cast<T*>(a_.dx)),
          wide(padded(a_.width)), stream(layer_streams(a_.rows, a_.width, dx)) {}

    double mean(int64_t r) const { return a.stats[r]; }
    double rstd(int64_t r) const { return a.stats[2 * a.rows + r]; }

    // S w dy and S w dy * xhat of row r.
    GradientSums row_sums(int64_t r, const Scalar* w) const {
        const V m = N::set(Scalar(mean(r))), rs = N::set(rstd(r)), zero = N::set(0);
        const T *gp = dy + r * a.width, *xp = x + r * a.width;
        D2 total = zero2(), dot = zero2();
        const int64_t ahead = kRowsTogether * a.width;
        auto take = [&](V g, V v, int64_t j) {
            prefetch(gp + ahead + j);
            prefetch(xp + ahead + j);
            const V dxhat = g * N::get_constants(w + j);
            total = total + widen(dxhat);
            dot = dot + widen(dxhat * ((v - m) * rs));
        };
        for_columns(
            a.width, [&](int64_t j) { take(N::get(gp + j, 0), N::get(xp + j, 0), j); },
            [&](int64_t j, int64_t n) { take(N::get_tail(gp + j, n, zero), N::get_tail(xp + j, n, m), j); });
        return center<Scalar>(mean(r), rstd(r), sum_lanes(total), sum_lanes(dot));
    }

    // dx of rows [r, r + kRows) and their part of dweight and dbias, sums: (2, wide).
    template <int kRows> void write(int64_t r, const Scalar* w, double* sums) const {
        V m[kRows], rs[kRows], off[kRows], sb[kRows], sc[kRows];
        for (int u = 0; u < kRows; ++u) {
            GradientSums found = row_sums(r + u, w);
            if (a.rms) found.dz = 0.0;
            const Slope<Scalar> s = group_slope<Scalar>(mean(r + u), rstd(r + u), 1.0, found, a.width);
            const Affine<Scalar> f = affine<Scalar>(mean(r + u), rstd(r + u), 1.0, 0.0);
            m[u] = N::set(f.m), rs[u] = N::set(f.scale), off[u] = N::set(f.shift), sb[u] = N::set(s.b), sc[u] = N::set(s.c);
        }
        auto column = [&](int64_t j, auto&& read, auto&& put) {
            const V wj = N::get_constants(w + j);
            V total = N::set(0), dot = N::set(0);
            for (int u = 0; u < kRows; ++u) {  // unrolled by hand, its constants leave the registers: 3 to 8 % slower
                const int64_t at = (r + u) * a.width + j;
                if (dx && !stream) prefetch_to_write(dx + at + kRows * a.width);
                const V g = read(dy + at), centered = read(x + at) - m[u];
                if (dx) put(dx + at, fma(sb[u], centered * rs[u], fma(g * wj, rs[u], sc[u])));
                total = total + g;
                dot = fma(g, fma(centered, rs[u], off[u]), dot);
            }
            if (sums) {
                store2(sums + j, load2(sums + j) + widen(total));
                store2(sums + wide + j, load2(sums + wide + j) + widen(dot));
            }
        };
        for_columns(
            a.width,
            [&](int64_t j) {
                auto read = [](const T* p) { return N::get(p, 0); };
                if (stream) column(j, read, [](T* p, V v) { N::put_stream(p, v); });
                else column(j, read, [](T* p, V v) { N::put(p, v); });
            },
            [&](int64_t j, int64_t n) {
                column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                       [&](T* p, V v) { N::put_tail(p, v, n); });
            });
    }

    void run(const Parallel& parallel) const {
        const RowsPlan plan = plan_rows(a.rows, a.width);
        const bool parameters = a.dweight.data || a.dbias.data;
        double* memory = scratch(wide + (parameters ? 2 * plan.blocks * wide : 0));
        Scalar* w = reinterpret_cast<Scalar*>(memory);
        std::fill(w, w + wide, Scalar(0));
        expand(a.weight, 1.0, a.width, w);
        parallel(plan.blocks, 2 * a.rows * a.width * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                double* sums = parameters ? memory + wide + 2 * b * wide : nullptr;
                if (sums) std::fill(sums, sums + 2 * wide, 0.0);
                const int64_t last = plan.end(b);
                int64_t r = plan.begin(b);
                for (; r + kRowsTogether <= last; r += kRowsTogether) write<kRowsTogether>(r, w, sums);
                for (; r < last; ++r) write<1>(r, w, sums);
            }
            if (stream) stream_fence();
        });
        if (!parameters) return;
        parallel((a.width + kMergeChannels - 1) / kMergeChannels, 16 * plan.blocks * a.width, [&](int64_t begin, int64_t end) {
            for (int64_t j = begin * kMergeChannels; j < std::min(a.width, end * kMergeChannels); ++j) {
                double total = 0.0, dot = 0.0;
                for (int64_t b = 0; b < plan.blocks; ++b) {
                    total += memory[wide + 2 * b * wide + j];
                    dot += memory[wide + (2 * b + 1) * wide + j];
                }
                a.dweight.put(j, dot);
                a.dbias.put(j, total);
            }
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
