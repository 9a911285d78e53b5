// What the planar kernels share, layout (N, C, S). A block is `group` neighbouring channels of every sample: runs of
// group * S elements, so that memory is streamed where rows are short (7x7, 14x14) as where they are long.
//
// Rows of one channel are taken kRowsAtOnce at a time: they share constants and sums in registers, and a row of 49
// elements is too short to fill the time that its own additions take. What a channel costs once, its sums across lanes
// and its constants, is made for a vector of channels at a time.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "plan/planar_plan.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

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

constexpr int kRowsAtOnce = 4;      // tried: planar-blocks, planar-two-vectors
constexpr int64_t kLongRun = 2048;  // elements: from here on a run is taken as four rows (tried: planar-long-run)

// f(n, rows) for kRowsAtOnce rows at a time, then for two and one of those left; rows is a compile-time constant.
template <class F> NK_INLINE void for_row_groups(int64_t rows, F&& f) {
    int64_t n = 0;
    for (; n + kRowsAtOnce <= rows; n += kRowsAtOnce) f(n, std::integral_constant<int, kRowsAtOnce>{});
    if (n + 2 <= rows) f(n, std::integral_constant<int, 2>{}), n += 2;
    if (n < rows) f(n, std::integral_constant<int, 1>{});
}

}  // namespace NK_ISA
}  // namespace normkit
