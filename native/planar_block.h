// What the forward and the backward of a block share. A block is `group` neighbouring channels of every sample, layout
// (N, C, S): runs of group * S elements, so that memory is streamed where rows are short (7x7, 14x14) as where they are
// long.
//
// Rows of one channel are taken kRowsAtOnce at a time: they share constants and sums in registers, and a row of 49
// elements is too short to fill the time that its own additions take.
#pragma once
#include <utility>

#include "channel_plan.h"
#include "lanes.h"
#include "moments.h"

namespace normkit {
namespace NK_ISA {

constexpr int kRowsAtOnce = 4;

// f(n, rows) for kRowsAtOnce rows at a time, then for each row that is left; rows is a compile-time constant.
template <class F> NK_INLINE void for_row_groups(int64_t rows, F&& f) {
    int64_t n = 0;
    for (; n + kRowsAtOnce <= rows; n += kRowsAtOnce) f(n, std::integral_constant<int, kRowsAtOnce>{});
    for (; n < rows; ++n) f(n, std::integral_constant<int, 1>{});
}

// The same groups, last one first: the newest rows are still in cache.
template <class F> NK_INLINE void for_row_groups_backwards(int64_t rows, F&& f) {
    int64_t n = rows;
    for (; n % kRowsAtOnce != 0; --n) f(n - 1, std::integral_constant<int, 1>{});
    for (; n > 0; n -= kRowsAtOnce) f(n - kRowsAtOnce, std::integral_constant<int, kRowsAtOnce>{});
}

template <class F, int... U> NK_INLINE void repeat(F&& f, std::integer_sequence<int, U...>) {
    (f(std::integral_constant<int, U>{}), ...);
}

// f(0) ... f(count - 1), unrolled at every optimization level: sums stay in registers.
template <int kCount, class F> NK_INLINE void repeat(F&& f) { repeat(f, std::make_integer_sequence<int, kCount>{}); }

// Two sums of one channel as lanes: S a and S a' * b. Even and odd rows apart, so that no addition waits for the last.
struct LaneSums {
    D2 total0, total1, dot0, dot1;

    void clear() { total0 = total1 = dot0 = dot1 = zero2(); }
    template <int U> NK_INLINE void add(D2 v, D2 a, D2 b) {
        if constexpr (U % 2 == 0) total0 = total0 + v, dot0 = fma(a, b, dot0);
        else total1 = total1 + v, dot1 = fma(a, b, dot1);
    }
    template <int U> NK_INLINE void add_low(vd v, vd a, vd b) {  // a tail of at most kDoubles elements
        if constexpr (U % 2 == 0) total0.a = total0.a + v, dot0.a = fma(a, b, dot0.a);
        else total1.a = total1.a + v, dot1.a = fma(a, b, dot1.a);
    }
    Sums sums() const { return {sum_lanes(total0 + total1), sum_lanes(dot0 + dot1)}; }
};

// One run of a block whose rows do not start at multiples of a vector, made in L1 and then streamed as whole lines.
constexpr int64_t kStage = 2 * kShortRow;  // elements: plan_planar keeps runs of short rows below it

template <class T> NK_INLINE void stream_run(T* to, const T* from, int64_t count) {
    constexpr int64_t kLine = kFloats * int64_t(sizeof(float)), kElements = kLine / int64_t(sizeof(T));
    const int64_t past = int64_t(reinterpret_cast<uintptr_t>(to) % kLine) / int64_t(sizeof(T));
    int64_t i = past == 0 ? 0 : std::min(count, kElements - past);
    std::memcpy(to, from, size_t(i) * sizeof(T));
    for (; i + kElements <= count; i += kElements)
        stream(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
    std::memcpy(to + i, from + i, size_t(count - i) * sizeof(T));
}

}  // namespace NK_ISA
}  // namespace normkit
