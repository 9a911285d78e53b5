// Layer norm and RMS norm: the backward.
//
// Per row S w dy and S w dy * xhat; then, four rows at a time from cache, dx and the sums of dweight and dbias. Blocks of
// rows, or tiles of columns, keep sums of their own, merged in order. RMS norm's first sum is not used. After an addition
// dx is rounded before dsum is added, as two operations would: their result to the bit.
#pragma once
#include <algorithm>
#include <cstdint>

#include "layer/forward.h"
#include "layer/params.h"
#include "parallel.h"
#include "plan/rows_plan.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct LayerBackwardKernel : LayerRows<T> {
    using Base = LayerRows<T>;
    using Base::rows, Base::padded_width, Base::width;
    using typename Base::Constants;
    using typename Base::N;
    using typename Base::Scalar;
    using typename Base::V;

    const LayerBackward& a;
    const T *dy, *dsum, *x;
    T* dx;
    const bool stream;

    explicit LayerBackwardKernel(const LayerBackward& a_)
        : Base(a_.rows, a_.width), a(a_), dy(static_cast<const T*>(a_.dy)), dsum(static_cast<const T*>(a_.dsum)),
          x(static_cast<const T*>(a_.x)), dx(static_cast<T*>(a_.dx)),
          stream(layer_streams(std::max(a_.rows, a_.rows_of_all), a_.width, dx)) {}

    bool parameters() const { return a.dweight.data || a.dbias.data; }
    int64_t bytes(int64_t count) const { return 2 * count * width * int64_t(sizeof(T)); }

    // S w dy and S w dy * (x - mean) of columns [first, last) of row r, in lanes, from exact products: dy may vanish where
    // the sums nearly cancel. Fetches what lies `ahead` elements further on.
    template <class Put>
    NK_INLINE void sums(int64_t r, int64_t first, int64_t last, const Scalar* w, int64_t ahead, Put&& put) const {
        const double2 mean = both_halves(a.stats[r]);
        const V zero = N::set(0);
        const T *gp = dy + r * width, *xp = x + r * width;
        double2 total = zero2(), dot = zero2();
        auto take = [&](double2 g, double2 v, int64_t j) {
            prefetch(gp + ahead + j);
            prefetch(xp + ahead + j);
            const double2 dxhat = g * load_wide(w + j);
            total = total + dxhat;
            dot = fma(dxhat, v - mean, dot);
        };
        for_columns(
            first, last, [&](int64_t j) { take(N::get_wide(gp + j), N::get_wide(xp + j), j); },
            [&](int64_t j, int64_t n) {
                take(widen(N::get_tail(gp + j, n, zero)), widen(N::get_tail(xp + j, n, zero)), j);
            });
        put(total, dot);
    }

    // The constants of rows [r, r + count) from their sums, from i on.
    void finish_rows(int64_t r, int64_t count, double2 total, double2 dot, const Constants& k, int64_t i) const {
        const double2 mean = load_head(a.stats + r, count), rstd = load_head(a.stats + 2 * rows + r, count);
        const double2 minus_inv_count = both_halves(-1.0 / double(width)), one = both_halves(1.0);
        k.set_affine(i, mean, rstd, one, zero2());
        k.set_slope(i, mean, rstd, one, a.rms ? zero2() : total * minus_inv_count, dot * rstd * minus_inv_count);
    }

    // dx of rows [r, r + kRows), columns [first, last), constants from i on; adds to sums: (2, padded_width), may be null.
    template <int kRows, bool Added, bool Stream> void write(int64_t r, const Constants& k, int64_t i, int64_t first,
                                                             int64_t last, const Scalar* w, double* sums) const {
        V m[kRows], rs[kRows], off[kRows], sb[kRows], sc[kRows];
        for (int u = 0; u < kRows; ++u) {
            m[u] = N::set(k.m[i + u]), rs[u] = N::set(k.scale[i + u]), off[u] = N::set(k.shift[i + u]);
            sb[u] = N::set(k.b[i + u]), sc[u] = N::set(k.c[i + u]);
        }
        const int64_t stride = width, ahead = kRows * width, second = padded_width;
        const T *gp = dy + r * stride, *xp = x + r * stride, *sp = Added ? dsum + r * stride : nullptr;
        T* to = dx ? dx + r * stride : nullptr;
        auto column = [&](int64_t j, auto&& read, auto&& put) NK_IN_PLACE {
            const V wj = N::get_constants(w + j);
            V total = N::set(0), dot = N::set(0);
            repeat<kRows>([&](auto u) NK_IN_PLACE {
                const int64_t at = u * stride + j;
                if (!Stream && to) prefetch_to_write(to + at + ahead);
                const V g = read(gp + at), centered = read(xp + at) - m[u];
                if (to) {
                    const V slope = fma(sb[u], centered * rs[u], fma(g * wj, rs[u], sc[u]));
                    put(to + at, Added ? rounded<T>(slope) + read(sp + at) : slope);
                }
                total = total + g;
                dot = fma(g, fma(centered, rs[u], off[u]), dot);
            });
            if (sums) {
                store2(sums + j, load2(sums + j) + widen(total));
                store2(sums + second + j, load2(sums + second + j) + widen(dot));
            }
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
    template <bool Added, bool Stream> void write_rows(int64_t r, int64_t end, const Constants& k, int64_t first,
                                                       int64_t last, const Scalar* w, double* sums) const {
        int64_t i = 0;
        for (; r + kRowsTogether <= end; r += kRowsTogether, i += kRowsTogether)
            write<kRowsTogether, Added, Stream>(r, k, i, first, last, w, sums);
        for (; r < end; ++r, ++i) write<1, Added, Stream>(r, k, i, first, last, w, sums);
    }
    void output(int64_t r, int64_t end, const Constants& k, int64_t first, int64_t last, const Scalar* w,
                double* sums) const {
        if (dsum && stream) write_rows<true, true>(r, end, k, first, last, w, sums);
        else if (dsum) write_rows<true, false>(r, end, k, first, last, w, sums);
        else if (stream) write_rows<false, true>(r, end, k, first, last, w, sums);
        else write_rows<false, false>(r, end, k, first, last, w, sums);
    }

    // Whole rows, some at a time. partial: (blocks, 2, padded_width).
    void by_rows(const RowsPlan& plan, double* partial, const Scalar* w, const Parallel& parallel) const {
        const bool summing = parameters();
        const int64_t together = rows_summed_together(bytes(1));
        parallel(plan.blocks, bytes(rows) * this->cost() / width, [&](int64_t begin, int64_t end) {
            double memory[Constants::doubles(kLanes)];
            const Constants k(memory, kLanes);
            for (int64_t block = begin; block < end; ++block) {
                double* of_block = summing ? partial + 2 * block * padded_width : nullptr;
                if (summing) std::fill(of_block, of_block + 2 * padded_width, 0.0);
                for (int64_t r = plan.begin(block), last = plan.end(block); r < last; r += together) {
                    const int64_t count = std::min(together, last - r);
                    RowSums found(count);
                    for (int64_t i = 0; i < count; ++i)
                        sums(r + i, 0, width, w, together * width, [&](double2 total, double2 dot) { found.set(i, total, dot); });
                    finish_rows(r, count, found.across(found.first), found.across(found.second), k, 0);
                    output(r, r + count, k, 0, width, w, of_block);
                }
            }
            if (stream) stream_fence();
        });
        if (!summing) return;
        parallel((width + kMergeChannels - 1) / kMergeChannels, 16 * plan.blocks * width,
                 [&](int64_t begin, int64_t end) {
                     const int64_t first = begin * kMergeChannels, last = std::min(padded_width, end * kMergeChannels);
                     for (int64_t j = first; j < last; j += kLanes) {
                         double2 total = load2(partial + j), dot = load2(partial + padded_width + j);
                         for (int64_t block = 1; block < plan.blocks; ++block) {
                             total = total + load2(partial + 2 * block * padded_width + j);
                             dot = dot + load2(partial + (2 * block + 1) * padded_width + j);
                         }
                         store2(partial + j, total);
                         store2(partial + padded_width + j, dot);
                     }
                     put_parameters(partial, first, std::min(width, last));
                 });
    }
    void put_parameters(const double* sums, int64_t first, int64_t last) const {
        put_columns(a.dbias, first, last, sums);
        put_columns(a.dweight, first, last, sums + padded_width);
    }

    // Few or long rows: see TilesPlan. memory: constants of a chunk of rows, and their sums (parts, 2, chunk).
    static int64_t tiles_memory(const TilesPlan& plan) {
        return TilesPlan::kChunkRows * 2 * plan.parts + Constants::doubles(TilesPlan::kChunkRows);
    }
    void by_tiles(const TilesPlan& plan, double* memory, double* parameter_sums, const Scalar* w,
                  const Parallel& parallel) const {
        constexpr int64_t chunk = TilesPlan::kChunkRows;
        double* partial = memory;
        const Constants k(partial + 2 * plan.parts * chunk, chunk);
        for (int64_t r = 0; r < rows; r += chunk) {
            const int64_t count = std::min(chunk, rows - r);
            this->sum_chunk(
                plan, count, bytes(count), partial, parallel,
                [&](int64_t i, int64_t first, int64_t last, auto&& put) {
                    sums(r + i, first, last, w, fetch_distance<T>(0), put);
                },
                [&](int64_t i, int64_t n, double2 total, double2 dot) { finish_rows(r + i, n, total, dot, k, i); });
            parallel(plan.tiles, bytes(count), [&](int64_t begin, int64_t end) {
                for (int64_t t = begin; t < end; ++t) {
                    const int64_t first = plan.tile(t), last = plan.tile(t + 1), end_of_sums = padded(last);
                    if (parameter_sums && r == 0) {
                        std::fill(parameter_sums + first, parameter_sums + end_of_sums, 0.0);
                        std::fill(parameter_sums + padded_width + first, parameter_sums + padded_width + end_of_sums,
                                  0.0);
                    }
                    output(r, r + count, k, first, last, w, parameter_sums);
                    if (parameter_sums && r + count == rows) put_parameters(parameter_sums, first, last);
                }
                if (stream) stream_fence();
            });
        }
    }

    void run(const Parallel& parallel) const {
        const bool tiles = rows < 64 || width > kLongWidth;
        const RowsPlan blocks = plan_rows(rows, this->cost());
        const TilesPlan plan = plan_tiles(rows, width);
        const int64_t of_sums = parameters() ? 2 * padded_width * (tiles ? 1 : blocks.blocks) : 0;
        double* memory = scratch(padded_width + of_sums + (tiles ? tiles_memory(plan) : 0));
        const Scalar* w = this->constants(a.weight, 1.0, reinterpret_cast<Scalar*>(memory), parallel);
        double* sums_at = memory + padded_width;
        if (tiles) by_tiles(plan, sums_at + of_sums, parameters() ? sums_at : nullptr, w, parallel);
        else by_rows(blocks, sums_at, w, parallel);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
