// The sums of one row that is a statistic's: of layer norm, and of a norm with a modulation per element.
#pragma once
#include <cstdint>

#include "rows/columns_loop.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

// A row as it is summed, read where it lies.
template <class T> struct RowRead {
    using N = Num<T>;
    using V = typename N::V;

    const T* row;

    NK_INLINE void fetch(int64_t j) const { prefetch(row + j); }
    NK_INLINE V get(int64_t j) const { return N::get(row + j, 0); }
    NK_INLINE V get_tail(int64_t j, int64_t n, V fill) const { return N::get_tail(row + j, n, fill); }
};

// S(x - k) and S(x - k)^2 of columns [first, last) of a row, in lanes: put(sum, squares). Fetches what lies `ahead`
// elements further on.
template <class Row, class Put>
NK_INLINE void row_sums(const Row& row, int64_t first, int64_t last, double k, int64_t ahead, Put&& put) {
    const double2 shift = both_halves(k);
    double2 s0 = zero2(), s1 = s0, q0 = s0, q1 = s0;
    auto add = [&](double2 v, double2& s, double2& q) {
        const double2 d = v - shift;
        s = s + d;
        q = fma(d, d, q);
    };
    int64_t j = first;
    for (; j + 2 * kLanes <= last; j += 2 * kLanes) {
        row.fetch(ahead + j);
        row.fetch(ahead + j + kLanes);
        add(widen(row.get(j)), s0, q0);
        add(widen(row.get(j + kLanes)), s1, q1);
    }
    for_columns(
        j, last, [&](int64_t i) { add(widen(row.get(i)), s0, q0); },
        [&](int64_t i, int64_t n) { add(widen(row.get_tail(i, n, Row::N::set(k))), s1, q1); });
    put(s0 + s1, q0 + q1);
}

}  // namespace NK_ISA
}  // namespace normkit
