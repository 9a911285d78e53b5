// The order in which sweeps over rows of channels read memory: tiles of channels, chunks of rows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "rows/columns_loop.h"
#include "simd/pairs.h"
#include "simd/repeat.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

constexpr int kWriteUnroll = 4;  // rows written together (tried: rows-write-few)
// A vector of a 16-bit type fills half a cache line: streamed rows side by side keep too many lines half full
// (tried: stream-half-lines).
template <class T> constexpr bool kHalfLines = sizeof(T) == 2 && std::is_same_v<InRow<T>, T>;
template <class T> constexpr int kStreamUnroll = kHalfLines<T> ? 1 : kWriteUnroll;
// How far ahead the second sweep fetches at least, in elements: 16-bit types 2 KB, others the rows that follow
// (tried: half-write-ahead).
template <class T> constexpr int64_t kWriteAhead = sizeof(T) == 2 ? 1024 : 0;
constexpr int64_t kTile = 512;              // channels: 12 KB of sums and shifts, which L1 keeps (tried: rows-tile)
constexpr int64_t kChunkBytes = 64 * 1024;  // rows forwards in a chunk, chunks backwards: what is in cache first

// Whether the second sweep finds its first rows beyond L2.
inline bool prefetches(int64_t rows, int64_t channels, int64_t element_bytes) {
    return channels * element_bytes >= 512 && rows * channels * element_bytes >= (int64_t(4) << 20);
}

// Rows [begin, end) of a tile of channels at a time, kRows together: group(r, first, last, integral_constant).
template <int kRows, class Group>
NK_INLINE void for_tiles(int64_t begin, int64_t end, int64_t channels, Group&& group) {
    for (int64_t first = 0; first < channels; first += kTile) {
        const int64_t last = std::min(channels, first + kTile);
        int64_t r = begin;
        for (; r + kRows <= end; r += kRows) group(r, first, last, std::integral_constant<int, kRows>{});
        for (; r < end; ++r) group(r, first, last, std::integral_constant<int, 1>{});
    }
}

// The reversed order of the second sweep: chunk(begin, end) over rows, last chunk first.
template <class Chunk> void for_chunks_backwards(int64_t begin, int64_t end, int64_t row_bytes, Chunk&& chunk) {
    const int64_t rows = std::max<int64_t>(kWriteUnroll, kChunkBytes / std::max<int64_t>(1, row_bytes));
    for (int64_t last = end; last > begin;) {
        const int64_t first = std::max(begin, last - rows);
        chunk(first, last);
        last = first;
    }
}

}  // namespace NK_ISA
}  // namespace normkit
