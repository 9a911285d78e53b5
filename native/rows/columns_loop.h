// Loops over the columns of a row, and how far ahead a sweep over rows fetches.
#pragma once
#include <algorithm>
#include <cstdint>

#include "simd/lanes.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

// How far ahead sums fetch: a group of rows, for narrow rows this many bytes (tried: rows-fetch).
constexpr int64_t kFetchBytes = 8 * 1024;
template <class T> NK_INLINE int64_t fetch_distance(int64_t elements) {
    return std::max(elements, kFetchBytes / int64_t(sizeof(T)));
}

// The columns [first, last) of a row: full(j) for each whole vector of kCount elements, tail(j, n) for what is left.
template <int kCount = kLanes, class Full, class Tail>
NK_INLINE void for_columns(int64_t first, int64_t last, Full&& full, Tail&& tail) {
    int64_t j = first;
    for (; j + kCount <= last; j += kCount) full(j);
    if (j < last) tail(j, last - j);
}
template <class Full, class Tail> NK_INLINE void for_columns(int64_t channels, Full&& full, Tail&& tail) {
    for_columns(0, channels, full, tail);
}

}  // namespace NK_ISA
}  // namespace normkit
