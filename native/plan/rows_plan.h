// How rows of elements (channels last, layer norm) are cut into blocks, one a task. Depends on shapes only: never on the
// number of threads.
#pragma once
#include <algorithm>
#include <cstdint>

namespace normkit {

struct RowsPlan {
    int64_t rows = 0, blocks = 1;
    int64_t begin(int64_t block) const { return rows * block / blocks; }
    int64_t end(int64_t block) const { return begin(block + 1); }
};

// A block that keeps sums leaves two doubles a channel, 4 / rows of what it reads in float32: so it has at least 32 rows.
// The number of blocks is a power of two and they differ by one row at most: 2, 4 or 8 threads get equal shares.
inline RowsPlan plan_rows(int64_t rows, int64_t row_elements, int64_t least_rows = 32) {
    constexpr int64_t kSmall = 16 * 1024, kLarge = 64 * 1024, kFew = 8, kMost = 32;  // tried: equal-blocks
    RowsPlan plan{rows, 1};
    auto pays =
        [&](int64_t blocks) {  // few blocks first: the merge of many costs as much as a sweep over a small tensor
            return rows >= blocks * least_rows && rows * row_elements >= blocks * (blocks <= kFew ? kSmall : kLarge);
        };
    while (plan.blocks < kMost && pays(2 * plan.blocks)) plan.blocks *= 2;
    return plan;
}

constexpr int64_t kMergeChannels = 64;  // channels of one task of a merge

// Layer norm where rows are few or long: a chunk of rows is summed, a part of a row a task, and then written, a tile of
// columns of all its rows a task: no row is one thread's alone, and sums over the rows stay where they are made.
struct TilesPlan {
    static constexpr int64_t kChunkRows = 64;  // fewer rows would be too few tasks (tried: layer-tiles)
    int64_t width = 0, parts = 1, tiles = 1;
    static int64_t cut(int64_t width, int64_t i, int64_t of) { return i == of ? width : width * i / of / 64 * 64; }
    int64_t part(int64_t i) const { return cut(width, i, parts); }
    int64_t tile(int64_t i) const { return cut(width, i, tiles); }
};

inline TilesPlan plan_tiles(int64_t rows, int64_t width) {
    constexpr int64_t kTask = 8 * 1024, kMost = 32, kTileWidth = 2048;  // elements (tried: layer-tiles)
    const int64_t count = std::min(rows, TilesPlan::kChunkRows), most = std::min(kMost, rows * width / kTask);
    TilesPlan plan{width};
    while (count * plan.parts < 8 && 2 * plan.parts * kTask <= width) plan.parts *= 2;
    while (2 * plan.tiles <= most && 128 * plan.tiles <= width) plan.tiles *= 2;
    plan.tiles = std::max(plan.tiles, (width + kTileWidth - 1) / kTileWidth);
    return plan;
}

}  // namespace normkit
