// What the planar kernels share, layout (N, C, S). A block is `group` neighbouring channels of every sample: runs of
// group * S elements, so that memory is streamed where rows are short (7x7, 14x14) as where they are long.
//
// Rows of one channel are taken kRowsAtOnce at a time: they share constants and sums in registers, and a row of 49
// elements is too short to fill the time that its own additions take. What a channel costs once, its sums across lanes
// and its constants, is made for a vector of channels at a time.
#pragma once
#include <utility>

#include "channel_constants.h"
#include "channel_plan.h"
#include "lane_sums.h"
#include "pairs.h"

namespace normkit {
namespace NK_ISA {

// Rows of one length, one below the other: where the first starts, how far apart they are; the same for sign bits.
struct Rows {
    int64_t offset, length, bit_byte, stride = 0, bit_stride = 0;
};

NK_INLINE Rows rows_at(const Shape& s, int64_t c, int64_t n) {
    const int64_t row = n * s.c + c;
    return {row * s.s, s.s, row * s.bit_row(), s.c * s.s, s.c * s.bit_row()};
}

// One segment of one row of channel c: index = n * segments_per_row + where in the row.
NK_INLINE Rows segment_at(const Shape& s, const PlanarPlan& plan, int64_t c, int64_t index) {
    if (plan.segments_per_row == 1) return rows_at(s, c, index);  // a division costs as much as half a short row
    const int64_t n = index / plan.segments_per_row, at = (index % plan.segments_per_row) * kSegment;
    const int64_t row = n * s.c + c;
    return {row * s.s + at, std::min(kSegment, s.s - at), row * s.bit_row() + at / 8};
}

constexpr int kRowsAtOnce = 4;
constexpr int64_t kLongRun = 2048;  // elements: from here on a run is taken as four rows

// f(n, rows) for kRowsAtOnce rows at a time, then for two and one of those left; rows is a compile-time constant.
template <class F> NK_INLINE void for_row_groups(int64_t rows, F&& f) {
    int64_t n = 0;
    for (; n + kRowsAtOnce <= rows; n += kRowsAtOnce) f(n, std::integral_constant<int, kRowsAtOnce>{});
    if (n + 2 <= rows) f(n, std::integral_constant<int, 2>{}), n += 2;
    if (n < rows) f(n, std::integral_constant<int, 1>{});
}

// On a lambda: its body stands where it is called. A body left apart keeps its caller's sums in memory.
#define NK_IN_PLACE __attribute__((always_inline))

template <class F, int... U> NK_INLINE void repeat(F&& f, std::integer_sequence<int, U...>) {
    (f(std::integral_constant<int, U>{}), ...);
}

// f(0) ... f(count - 1), unrolled at every optimization level: sums stay in registers.
template <int kCount, class F> NK_INLINE void repeat(F&& f) { repeat(f, std::make_integer_sequence<int, kCount>{}); }

// Whole vectors of kCount elements over `count` rows that lie one behind the other, after the `head` elements that come
// first, `length` >= kCount each: full(k, i) for the vector at i, part(k, i, n) for n < kCount elements there, with the
// constants k = make(row). Where a vector reaches into the next row, k is mixed: that row's constants in its lanes. Rows of
// 49 take 3.06 vectors of 16 this way instead of 4, and none lies across cache lines where memory is aligned at `head`.
template <int kCount, class Make, class Full, class Part>
NK_INLINE void for_flat(int64_t count, int64_t length, int64_t head, Make&& make, Full&& full, Part&& part) {
    auto k = make(0);
    if (head > 0) part(k, 0, head);
    int64_t i = head, end = length;
    for (int64_t row = 1; row < count; ++row, end += length) {
        for (; i + kCount <= end; i += kCount) full(k, i);
        auto next = make(row);
        if (i < end) {
            full(k.mixed((1u << (end - i)) - 1u, next), i);
            i += kCount;
        }
        k = next;
    }
    for (; i + kCount <= end; i += kCount) full(k, i);
    if (i < end) part(k, i, end - i);
}

// Elements up to the first whole vector of p.
template <class T> NK_INLINE int64_t up_to_aligned(const T* p) {
    constexpr uintptr_t kBytes = Num<InRow<T>>::kCount * sizeof(T);
    return int64_t((kBytes - reinterpret_cast<uintptr_t>(p) % kBytes) % kBytes / sizeof(T));
}

// Two sums of one channel as lanes: S a and S a' * b. Even and odd rows apart, so that no addition waits for the last.
struct LaneSums {
    D2 total0 = zero2(), total1 = zero2(), dot0 = zero2(), dot1 = zero2();

    template <int U> NK_INLINE void add(D2 v, D2 a, D2 b) {
        if constexpr (U % 2 == 0) total0 = total0 + v, dot0 = fma(a, b, dot0);
        else total1 = total1 + v, dot1 = fma(a, b, dot1);
    }
    template <int U> NK_INLINE void add_low(vd v, vd a, vd b) {  // a tail of at most kDoubles elements
        if constexpr (U % 2 == 0) total0.a = total0.a + v, dot0.a = fma(a, b, dot0.a);
        else total1.a = total1.a + v, dot1.a = fma(a, b, dot1.a);
    }
    template <int kRows = 2> NK_INLINE vd total() const {
        return kRows == 1 ? total0.a + total0.b : (total0.a + total0.b) + (total1.a + total1.b);
    }
    template <int kRows = 2> NK_INLINE vd dot() const {
        return kRows == 1 ? dot0.a + dot0.b : (dot0.a + dot0.b) + (dot1.a + dot1.b);
    }
    Sums sums() const { return {sum_lanes(total()), sum_lanes(dot())}; }
};

// The two sums of up to kGroupMax channels: vectors while their rows are swept, then a number each.
struct BlockSums {
    vd total_lanes[kGroupMax], dot_lanes[kGroupMax];
    double total[kGroupMax], dot[kGroupMax];

    explicit BlockSums(int64_t channels) {
        for (int64_t c = 0; c < padded(channels); c += kDoubles) store(total + c, set1(0.0)), store(dot + c, set1(0.0));
        for (int64_t c = 0; c < whole(channels); ++c) total_lanes[c] = dot_lanes[c] = set1(0.0);
    }
    template <int kRows> NK_INLINE void add(int64_t c, const LaneSums& sums) {
        total_lanes[c] = total_lanes[c] + sums.total<kRows>();
        dot_lanes[c] = dot_lanes[c] + sums.dot<kRows>();
    }
    void close(int64_t channels) {
        sums_across(total_lanes, whole(channels), total);
        sums_across(dot_lanes, whole(channels), dot);
    }
    static int64_t whole(int64_t channels) { return (channels + kDoubles - 1) / kDoubles * kDoubles; }
};

// The median in vectors, which know no branches: on random data those of a scalar one are mispredicted.
NK_INLINE double median_in_lanes(double a, double b, double c) {
    return median_of_three(set1(a), set1(b), set1(c))[0];
}

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
