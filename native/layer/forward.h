// Statistics per row of `width` elements with parameters per element: layer norm and RMS norm.
//
// Forward: some rows are summed and, four at a time from cache, written: y = fma(xhat, weight, bias),
// xhat = fma(x - m, rstd, -(mean - m) * rstd). Sums across lanes, roots and divisions are made for a vector of rows at
// once: for a short row they would take longer than its elements. RMS norm is the same with mean = 0. An addition
// before the norm happens as a row is summed: its sum is written, and read again from cache.
#pragma once
#include <algorithm>
#include <cstdint>

#include "layer/params.h"
#include "parallel.h"
#include "plan/rows_plan.h"
#include "plan/streams.h"
#include "planar/forward_sums.h"
#include "rows/columns_loop.h"
#include "rows/row_sums.h"
#include "scratch.h"
#include "simd/columns.h"
#include "simd/lane_sums.h"
#include "simd/lanes.h"
#include "simd/repeat.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

constexpr int kRowsTogether = 4;       // written together (tried: layer-together)
constexpr int64_t kRowCost = 64;       // elements that a row costs at least: its sums across lanes, its constants
constexpr int64_t kLongWidth = 16384;  // elements: four rows above it outgrow L2 (tried: layer-tiles)

template <class T> bool layer_streams(int64_t rows, int64_t width, const T* out) {
    return outgrows_cache(rows * width * int64_t(sizeof(T))) && width % kLanes == 0 && aligned_for_stream(out);
}

// Up to a vector of rows, as long as they stay in L1 until they are written.
inline int64_t rows_summed_together(int64_t row_bytes) {
    int64_t count = kLanes;
    while (count > kRowsTogether && count * row_bytes > 32 * 1024) count /= 2;
    return count;
}

// Two sums of up to kLanes rows, a vector of lanes each, as one vector of rows.
struct RowSums {
    vd first[kLanes], second[kLanes];
    const int64_t summed;  // whole vectors of rows

    explicit RowSums(int64_t count) : summed((count + kDoubles - 1) / kDoubles * kDoubles) {
        for (int64_t i = count; i < summed; ++i) first[i] = second[i] = set1(0.0);
    }
    void set(int64_t i, double2 a, double2 b) {
        first[i] = a.a + a.b;
        second[i] = b.a + b.b;
    }
    double2 across(const vd* v) const {
        double t[kLanes] = {};
        sums_across(v, summed, t);
        return load2(t);
    }
};

// The sum of two rows as it is summed: rounded to T, and written.
template <class T> struct RowAdded {
    using N = Num<T>;
    using V = typename N::V;

    const T *left, *right;
    T* sum;

    NK_INLINE void fetch(int64_t j) const {
        prefetch(left + j);
        prefetch(right + j);
    }
    NK_INLINE V get(int64_t j) const {
        N::put(sum + j, N::get(left + j, 0) + N::get(right + j, 0));
        return N::get(sum + j, 0);
    }
    NK_INLINE V get_tail(int64_t j, int64_t n, V fill) const {
        N::put_tail(sum + j, N::get_tail(left + j, n, N::set(0)) + N::get_tail(right + j, n, N::set(0)), n);
        return N::get_tail(sum + j, n, fill);
    }
    void put(int64_t j) const { put_value(sum[j], value_of(left[j]) + value_of(right[j])); }
};

// What layer norm's two directions share: where a parameter lies in the computing type, and how rows become tasks.
template <class T> struct LayerRows {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    using Constants = Columns<Scalar>;

    const int64_t rows, width, padded_width;

    LayerRows(int64_t rows_, int64_t width_) : rows(rows_), width(width_), padded_width(padded(width_)) {}

    // What a row costs, in elements: no row costs nothing.
    int64_t cost() const { return std::max(width, kRowCost); }
    bool as_it_is(const Param& p) const {
        return p.data != nullptr && p.dtype == (sizeof(Scalar) == 8 ? kFloat64 : kFloat32) && width % kLanes == 0;
    }
    // The parameter as vectors are computed with; memory: (padded_width), used where it has to be converted.
    const Scalar* constants(const Param& p, double absent, Scalar* memory, const Parallel& parallel) const {
        if (as_it_is(p)) return static_cast<const Scalar*>(p.data);
        std::fill(memory + width, memory + padded_width, Scalar(0));
        parallel((width + kLongWidth - 1) / kLongWidth, width * int64_t(sizeof(Scalar)),
                 [&](int64_t begin, int64_t end) {
                     expand(p, absent, begin * kLongWidth, std::min(width, end * kLongWidth), memory);
                 });
        return memory;
    }

    // Two sums of each of `count` rows, a part of a row a task, merged in order: add(i, first, last, put) puts those of row
    // i's columns, in lanes; finish(i, n, a, b) takes those of rows [i, i + n). partial: (parts, 2, kChunkRows).
    template <class Add, class Finish> static void sum_chunk(const TilesPlan& plan, int64_t count, int64_t bytes,
                                                             double* partial, const Parallel& parallel, Add&& add,
                                                             Finish&& finish) {
        constexpr int64_t chunk = TilesPlan::kChunkRows;
        parallel(count * plan.parts, bytes, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; ++t) {
                const int64_t i = t / plan.parts, part = t % plan.parts;
                double* to = partial + 2 * part * chunk + i;
                add(i, plan.part(part), plan.part(part + 1), [&](double2 a, double2 b) {
                    to[0] = sum_lanes(a);
                    to[chunk] = sum_lanes(b);
                });
            }
        });
        for (int64_t i = 0; i < count; i += kLanes) {
            double2 a = load2(partial + i), b = load2(partial + chunk + i);
            for (int64_t part = 1; part < plan.parts; ++part) {
                a = a + load2(partial + 2 * part * chunk + i);
                b = b + load2(partial + (2 * part + 1) * chunk + i);
            }
            finish(i, std::min<int64_t>(kLanes, count - i), a, b);
        }
    }
};

template <class T> struct LayerForwardKernel : LayerRows<T> {
    using Base = LayerRows<T>;
    using Base::rows, Base::padded_width, Base::width;
    using typename Base::Constants;
    using typename Base::N;
    using typename Base::Scalar;
    using typename Base::V;

    const LayerForward& a;
    const T* x;  // what is normalized
    T* y;
    const bool stream;

    explicit LayerForwardKernel(const LayerForward& a_)
        : Base(a_.rows, a_.width), a(a_), x(static_cast<const T*>(a_.residual ? a_.sum : a_.x)),
          y(static_cast<T*>(a_.y)), stream(layer_streams(std::max(a_.rows, a_.rows_of_all), a_.width, y)) {}

    RowAdded<T> added(int64_t r) const {
        const int64_t at = r * width;
        return {static_cast<const T*>(a.x) + at, static_cast<const T*>(a.residual) + at, static_cast<T*>(a.sum) + at};
    }

    // S(x - k) and S(x - k)^2 of columns [first, last) of row r, in lanes; fetches what lies `ahead` elements further on.
    template <class Put> void sums(int64_t r, int64_t first, int64_t last, double k, int64_t ahead, Put&& put) const {
        if (a.residual) row_sums(added(r), first, last, k, ahead, put);
        else row_sums(RowRead<T>{x + r * width}, first, last, k, ahead, put);
    }

    // The shift of row r: where rows come from memory, its elements arrive only just before it is summed.
    double shift_of(int64_t r) const {
        if (a.rms) return 0.0;
        if (a.residual)  // the three values that it looks at
            for (int64_t j : {int64_t(0), width / 2, width - 1}) added(r).put(j);
        return run_shift(x + r * width, width);
    }

    // Rows [r, r + count) from their sums: statistics, and the constants from i on.
    void finish_rows(int64_t r, int64_t count, double2 sum, double2 squares, double2 shift, const Constants& k, int64_t i) const {
        Statistics2 st;
        if (a.rms) {
            st.mean = zero2(), st.var = squares / both_halves(double(width));
            st.rstd = rstd_of(st.var, a.eps);
        } else {
            st = finish(sum, squares, shift, width, a.eps);
        }
        write_statistics(a.stats, r, r + count, rows, st);
        k.set_affine(i, st.mean, st.rstd, both_halves(1.0), zero2());
    }

    // Rows [r, r + kRows), columns [first, last); their constants from i on.
    template <int kRows, bool Bias, bool Stream> void write(int64_t r, const Constants& k, int64_t i, int64_t first,
                                                            int64_t last, const Scalar* w, const Scalar* b) const {
        V m[kRows], scale[kRows], shift[kRows];
        for (int u = 0; u < kRows; ++u)
            m[u] = N::set(k.m[i + u]), scale[u] = N::set(k.scale[i + u]), shift[u] = N::set(k.shift[i + u]);
        const int64_t stride = width;
        const T* xp = x + r * stride;
        T* yp = y + r * stride;
        auto column = [&](int64_t j, auto&& read, auto&& put) NK_IN_PLACE {
            const V wj = N::get_constants(w + j), bj = Bias ? N::get_constants(b + j) : wj;
            repeat<kRows>([&](auto u) NK_IN_PLACE {
                const int64_t at = u * stride;
                if (!Stream) prefetch_to_write(yp + at + j + kRows * stride);
                const V xhat = fma(read(xp + at + j) - m[u], scale[u], shift[u]);
                put(yp + at + j, Bias ? fma(xhat, wj, bj) : xhat * wj);
            });
        };
        for_columns(
            first, last,
            [&](int64_t j) {
                column(
                    j, [](const T* p) { return N::get(p, 0); },
                    [](T* p, V v) { Stream ? N::put_stream(p, v) : N::put(p, v); });
            },
            [&](int64_t j, int64_t n) {
                column(
                    j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                    [&](T* p, V v) { N::put_tail(p, v, n); });
            });
    }

    template <bool Bias, bool Stream> void write_rows(int64_t r, int64_t end, const Constants& k, int64_t first,
                                                      int64_t last, const Scalar* w, const Scalar* b) const {
        int64_t i = 0;
        for (; r + kRowsTogether <= end; r += kRowsTogether, i += kRowsTogether)
            write<kRowsTogether, Bias, Stream>(r, k, i, first, last, w, b);
        for (; r < end; ++r, ++i) write<1, Bias, Stream>(r, k, i, first, last, w, b);
    }
    void output(int64_t r, int64_t end, const Constants& k, int64_t first, int64_t last, const Scalar* w,
                const Scalar* b) const {
        if (a.bias.data && stream) write_rows<true, true>(r, end, k, first, last, w, b);
        else if (a.bias.data) write_rows<true, false>(r, end, k, first, last, w, b);
        else if (stream) write_rows<false, true>(r, end, k, first, last, w, b);
        else write_rows<false, false>(r, end, k, first, last, w, b);
    }

    // Whole rows, some at a time.
    void by_rows(const Scalar* w, const Scalar* b, const Parallel& parallel) const {
        const RowsPlan plan = plan_rows(rows, this->cost(), kRowsTogether);
        parallel(plan.blocks, rows * this->cost() * int64_t(sizeof(T)), [&](int64_t begin, int64_t end) {
            double memory[Constants::doubles(kLanes)], shift[kLanes] = {};
            const Constants k(memory, kLanes);
            const int64_t together = rows_summed_together(width * int64_t(sizeof(T))), last = plan.end(end - 1);
            for (int64_t r = plan.begin(begin); r < last; r += together) {
                const int64_t count = std::min(together, last - r);
                RowSums found(count);
                for (int64_t i = 0; i < count; ++i) {
                    shift[i] = shift_of(r + i);
                    sums(r + i, 0, width, shift[i], together * width, [&](double2 s, double2 q) { found.set(i, s, q); });
                }
                finish_rows(r, count, found.across(found.first), found.across(found.second), load2(shift), k, 0);
                output(r, r + count, k, 0, width, w, b);
            }
            if (stream) stream_fence();
        });
    }

    // Few or long rows: see TilesPlan. memory: shifts, constants and sums of a chunk of rows.
    static int64_t tiles_memory(const TilesPlan& plan) {
        return TilesPlan::kChunkRows * (1 + 2 * plan.parts) + Constants::doubles(TilesPlan::kChunkRows);
    }
    void by_tiles(const TilesPlan& plan, double* memory, const Scalar* w, const Scalar* b,
                  const Parallel& parallel) const {
        constexpr int64_t chunk = TilesPlan::kChunkRows;
        double *shift = memory, *partial = memory + chunk;  // partial: (parts, 2, chunk)
        const Constants k(partial + 2 * plan.parts * chunk, chunk);
        for (int64_t r = 0; r < rows; r += chunk) {
            const int64_t count = std::min(chunk, rows - r), bytes = count * width * int64_t(sizeof(T));
            for (int64_t i = 0; i < count; ++i) shift[i] = shift_of(r + i);
            this->sum_chunk(
                plan, count, bytes, partial, parallel,
                [&](int64_t i, int64_t first, int64_t last, auto&& put) {
                    sums(r + i, first, last, shift[i], fetch_distance<T>(0), put);
                },
                [&](int64_t i, int64_t n, double2 sum, double2 squares) {
                    finish_rows(r + i, n, sum, squares, load2(shift + i), k, i);
                });
            parallel(plan.tiles, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) output(r, r + count, k, plan.tile(t), plan.tile(t + 1), w, b);
                if (stream) stream_fence();
            });
        }
    }

    void run(const Parallel& parallel) const {
        const bool tiles = width > kLongWidth;
        const TilesPlan plan = plan_tiles(rows, width);
        double* memory = scratch(2 * padded_width + (tiles ? tiles_memory(plan) : 0));
        const Scalar* w = this->constants(a.weight, 1.0, reinterpret_cast<Scalar*>(memory), parallel);
        const Scalar* b = this->constants(a.bias, 0.0, reinterpret_cast<Scalar*>(memory) + padded_width, parallel);
        if (tiles) by_tiles(plan, memory + 2 * padded_width, w, b, parallel);
        else by_rows(w, b, parallel);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
