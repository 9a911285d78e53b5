// Rows of few channels, taken as fewer rows of more columns: the vectors of a sweep are full then. Column i * C + c is
// channel c; what is known of the channels is repeated, sums are folded back.
#pragma once
#include <algorithm>
#include <cstdint>

#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/pairs.h"

namespace normkit {
namespace NK_ISA {

constexpr int kUnroll = 8;  // rows that a sweep sums together (tried: rows-eight)

// How many of `rows` rows are taken as one: what fills vectors best and leaves rows for a sweep to unroll. Sign bits start
// at a whole byte with each row.
template <class T> int64_t rows_in_one(int64_t rows, int64_t channels, bool bits) {
    constexpr int64_t kFewChannels = 64, kMost = 32, kVector = Num<InRow<T>>::kCount;  // tried: rows-merged
    auto filled = [&](int64_t rows_merged) { return (rows_merged * channels + kVector - 1) / kVector * kVector; };
    int64_t best = 1;
    if (channels >= kFewChannels || (bits && channels % 8 != 0)) return best;
    for (int64_t rows_merged = 2; rows_merged <= std::min(kMost, rows / kUnroll) && filled(best) != best * channels;
         ++rows_merged)
        if (rows % rows_merged == 0 && filled(rows_merged) * best < filled(best) * rows_merged) best = rows_merged;
    return best;
}

template <class Scalar> void repeat_columns(Scalar* v, int64_t channels, int64_t rows_merged) {
    for (int64_t i = 1; i < rows_merged; ++i) std::copy(v, v + channels, v + i * channels);
}

inline void add_columns(double* v, int64_t channels, int64_t rows_merged) {
    for (int64_t i = 1; i < rows_merged; ++i)
        for (int64_t c = 0; c < channels; ++c) v[c] += v[i * channels + c];
}

// sums (blocks, 2, padded_columns): adds all blocks' into the first, of which it folds the columns.
inline void fold_blocks(double* sums, int64_t blocks, int64_t padded_columns, int64_t channels, int64_t rows_merged) {
    for (int64_t b = 1; b < blocks; ++b)
        for (int64_t j = 0; j < 2 * padded_columns; j += kLanes)
            store2(sums + j, load2(sums + j) + load2(sums + 2 * b * padded_columns + j));
    add_columns(sums, channels, rows_merged);
    add_columns(sums + padded_columns, channels, rows_merged);
}

}  // namespace NK_ISA
}  // namespace normkit
