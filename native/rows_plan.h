// How rows of elements (channels last, layer norm) are cut into blocks, one a task. Depends on shapes only: never on the
// number of threads.
//
// A block leaves two doubles a channel, 4 / rows of what it reads in float32: so blocks have at least 32 rows. Their
// number is a power of two and they differ by one row at most: 2, 4 or 8 threads get equal shares.
#pragma once
#include <algorithm>
#include <cstdint>

namespace normkit {

struct RowsPlan {
    int64_t rows = 0, blocks = 1;
    int64_t begin(int64_t block) const { return rows * block / blocks; }
    int64_t end(int64_t block) const { return begin(block + 1); }
};

inline RowsPlan plan_rows(int64_t rows, int64_t row_elements) {
    constexpr int64_t kBlockRows = 32, kSmall = 16 * 1024, kLarge = 64 * 1024, kFew = 8, kMost = 32;
    RowsPlan plan{rows, 1};
    auto pays = [&](int64_t blocks) {  // few blocks first: the merge of many costs as much as a sweep over a small tensor
        return rows >= blocks * kBlockRows && rows * row_elements >= blocks * (blocks <= kFew ? kSmall : kLarge);
    };
    while (plan.blocks < kMost && pays(2 * plan.blocks)) plan.blocks *= 2;
    return plan;
}

}  // namespace normkit
