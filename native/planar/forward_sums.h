// The sums of a forward over rows and runs, layout (N, C, S): S(x - k) and S(x - k)^2.
#pragma once
#include <cstdint>

#include "planar/block.h"
#include "planar/sums.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/repeat.h"
#include "simd/short_sums.h"
#include "simd/simd.h"
#include "view.h"

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
    const double2 shift = {set1(k), set1(k)};
    LaneSums t = to;
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes)
        repeat<kRows>([&](auto u) NK_IN_PLACE {
            prefetch(output + u * stride + i);
            const double2 d = N::get_wide(x + u * stride + i) - shift;
            t.template add<u>(d, d, d);
        });
    if (const int64_t left = length - i; left > 0)
        repeat<kRows>([&](auto u) NK_IN_PLACE {
            const auto v = N::get_tail(x + u * stride + i, left, N::set(k));
            if (left <= kDoubles) {
                const vd d = widen(v).a - shift.a;
                return t.template add_low<u>(d, d, d);
            }
            const double2 d = widen(v) - shift;
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
template <class T>
NK_INLINE void add_short_rows(LaneSums& to, const T* x, int64_t stride, int64_t length, const T* output) {
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

// The same of one run. Long ones as four rows, one after the other: memory sends four streams faster than one.
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

// The shift of one contiguous run.
template <class T> double run_shift(const T* x, int64_t length) {
    return median_in_lanes(value_of(x[0]), value_of(x[length / 2]), value_of(x[length - 1]));
}

}  // namespace NK_ISA
}  // namespace normkit
