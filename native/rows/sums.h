// The sums of a forward over rows of channels: S(x - k) and S(x - k)^2. Compiled once for batch norm and group norm.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "rows/rows_in_one.h"
#include "rows/tiles.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/short_sums.h"

namespace normkit {
namespace NK_ISA {

// sum[j] = S(x - k), squares[j] = S(x - k)^2 over rows [begin, end) for all padded(C) channels.
template <class T> void rows_sums(const T* x, int64_t begin, int64_t end, int64_t channels, const double* k,
                                  double* sum, double* squares) {
    using N = Num<T>;
    std::fill(sum, sum + padded(channels), 0.0);
    std::fill(squares, squares + padded(channels), 0.0);
    // Rows below p, `rows` of them. Sums and addresses in registers, hence unrolled by hand.
    auto wide_column = [=](const T* p, int64_t j, auto rows, auto&& read) {
        double2 s = load2(sum + j), q = load2(squares + j);
        const double2 kj = load2(k + j);
        const int64_t ahead = fetch_distance<T>(rows * channels);
        repeat<rows>([&](auto u) {
            prefetch(p + u * channels + ahead);
            const double2 d = widen(read(p + u * channels)) - kj;
            s = s + d;
            q = fma(d, d, q);
        });
        store2(sum + j, s);
        store2(squares + j, q);
    };
    auto short_column = [=](const T* p, int64_t j, auto rows, auto&& read) {
        double2 s = load2(sum + j), q = load2(squares + j);
        const int64_t ahead = fetch_distance<T>(rows * channels);
        repeat<rows / kShort>([&](auto group) {
            const T* four = p + group * kShort * channels;
            auto row = [&](int u) {
                prefetch(four + u * channels + ahead);  // one with each read: four at once cost a third more
                return read(four + u * channels);
            };
            const vf v0 = row(0), v1 = row(1), v2 = row(2), v3 = row(3);
            add_four(v0, v1, v2, v3, s, q);
        });
        store2(sum + j, s);
        store2(squares + j, q);
    };
    auto get = [](const T* p) { return N::get(p, 0); };
    auto get_tail = [](int64_t n) { return [n](const T* p) { return N::get_tail(p, n, N::set(0)); }; };
    for_tiles<kUnroll>(begin, end, channels, [&](int64_t r, int64_t first, int64_t last, auto rows) {
        auto column = [&](int64_t j, auto&& read) {
            if constexpr (kShortSums<T> && rows % kShort == 0) short_column(x + r * channels + j, j, rows, read);
            else wide_column(x + r * channels + j, j, rows, read);
        };
        for_columns(
            first, last, [&](int64_t j) { column(j, get); }, [&](int64_t j, int64_t n) { column(j, get_tail(n)); });
    });
    if constexpr (kShortSums<T>) {
        auto again = [&](int64_t j, int64_t n, auto&& read) {
            if (in_range(load2(squares + j), n)) return;
            store2(sum + j, zero2());
            store2(squares + j, zero2());
            for (int64_t r = begin; r < end; ++r)
                wide_column(x + r * channels + j, j, std::integral_constant<int, 1>{}, read);
        };
        for_columns(
            channels, [&](int64_t j) { again(j, kLanes, get); },
            [&](int64_t j, int64_t n) { again(j, n, get_tail(n)); });
    }
}

// The shifts of padded(C) channels: per channel the median of three elements; zero where sums are short.
template <class T> void rows_shifts(const T* x, int64_t rows, int64_t channels, double* k) {
    using N = Num<T>;
    if (kShortSums<T>) return std::fill(k, k + padded(channels), 0.0);
    const T *first = x, *middle = x + rows / 2 * channels, *last = x + (rows - 1) * channels;
    auto column = [&](int64_t j, auto&& read) {
        store2(k + j, median_of_three(widen(read(first + j)), widen(read(middle + j)), widen(read(last + j))));
    };
    for_columns(
        channels, [&](int64_t j) { column(j, [](const T* p) { return N::get(p, 0); }); },
        [&](int64_t j, int64_t n) { column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); }); });
}

}  // namespace NK_ISA
}  // namespace normkit
