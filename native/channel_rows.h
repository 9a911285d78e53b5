// Statistics across the batch, layout (N, S, C) seen as rows of C: batch norm with channels last, and (N, C).
//
// Rows are cut into blocks, a task each. The first sweep makes the sums of each block, a tile of channels at a time, so
// that they stay in L1; they are merged in block order; a second sweep, backwards in chunks (its first rows are the ones
// that the first sweep left in cache), writes the output. Both sweeps fetch ahead what comes from beyond L2: the first
// one x, the second one the lines of y that an ordinary store would read first, and x where it outgrew the cache.
#pragma once
#include "activation.h"
#include "channel_constants.h"
#include "channel_planar.h"
#include "gradient.h"
#include "rows_in_one.h"
#include "rows_plan.h"
#include "short_sums.h"
#include "sweeps.h"

namespace normkit {
namespace NK_ISA {

constexpr int kWriteUnroll = 4;
// A vector of a 16-bit type fills half a cache line: streamed rows side by side keep too many lines half full.
template <class T> constexpr bool kHalfLines = sizeof(T) == 2 && std::is_same_v<InRow<T>, T>;
template <class T> constexpr int kStreamUnroll = kHalfLines<T> ? 1 : kWriteUnroll;
// How far ahead sums fetch: a group of rows, for narrow rows this many bytes.
constexpr int64_t kFetchBytes = 8 * 1024;
template <class T> NK_INLINE int64_t fetch_distance(int64_t elements) {
    return std::max(elements, kFetchBytes / int64_t(sizeof(T)));
}
// How far ahead the second sweep fetches at least, in elements: 16-bit types 2 KB (5 to 15 %), others the rows that follow.
template <class T> constexpr int64_t kWriteAhead = sizeof(T) == 2 ? 1024 : 0;
constexpr int64_t kTile = 512;  // channels: 12 KB of sums and shifts
constexpr int64_t kChunkBytes = 64 * 1024;
constexpr int64_t kMergeChannels = 64;  // channels of one task of the merge

// Whether the second sweep finds its first rows beyond L2.
inline bool prefetches(int64_t rows, int64_t channels, int64_t element_bytes) {
    return channels * element_bytes >= 512 && rows * channels * element_bytes >= (int64_t(4) << 20);
}

// Streaming stores pay where the output's old lines have left the cache; below, they throw out what an ordinary store
// would find there: end to end 1.1 to 1.2 times from 12 MB on, a loss of a fifth at 6 to 8 MB, with and without a residual.
inline bool outgrows_cache(int64_t bytes) { return bytes >= (int64_t(12) << 20); }

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

// Rows [begin, end) of a tile of channels at a time, kRows together: group(r, first, last, integral_constant).
template <int kRows, class Group> NK_INLINE void for_tiles(int64_t begin, int64_t end, int64_t channels, Group&& group) {
    for (int64_t first = 0; first < channels; first += kTile) {
        const int64_t last = std::min(channels, first + kTile);
        int64_t r = begin;
        for (; r + kRows <= end; r += kRows) group(r, first, last, std::integral_constant<int, kRows>{});
        for (; r < end; ++r) group(r, first, last, std::integral_constant<int, 1>{});
    }
}

// The backward walk of the second sweep: chunk(begin, end) over rows, last chunk first.
template <class Chunk> void for_chunks_backwards(int64_t begin, int64_t end, int64_t row_bytes, Chunk&& chunk) {
    const int64_t rows = std::max<int64_t>(kWriteUnroll, kChunkBytes / std::max<int64_t>(1, row_bytes));
    for (int64_t last = end; last > begin;) {
        const int64_t first = std::max(begin, last - rows);
        chunk(first, last);
        last = first;
    }
}

// sum[j] = S(x - k), squares[j] = S(x - k)^2 over rows [begin, end) for all `wide` = padded(C) channels.
template <class T>
void rows_sums(const T* x, int64_t begin, int64_t end, int64_t channels, const double* k, double* sum, double* squares) {
    using N = Num<T>;
    std::fill(sum, sum + padded(channels), 0.0);
    std::fill(squares, squares + padded(channels), 0.0);
    // Rows below p, `rows` of them. Sums and addresses in registers, hence unrolled by hand.
    auto wide_column = [=](const T* p, int64_t j, auto rows, auto&& read) {
        D2 s = load2(sum + j), q = load2(squares + j);
        const D2 kj = load2(k + j);
        const int64_t ahead = fetch_distance<T>(rows * channels);
        repeat<rows>([&](auto u) {
            prefetch(p + u * channels + ahead);
            const D2 d = widen(read(p + u * channels)) - kj;
            s = s + d;
            q = fma(d, d, q);
        });
        store2(sum + j, s);
        store2(squares + j, q);
    };
    auto short_column = [=](const T* p, int64_t j, auto rows, auto&& read) {
        D2 s = load2(sum + j), q = load2(squares + j);
        const int64_t ahead = fetch_distance<T>(rows * channels);
        repeat<rows / kShort>([&](auto group) {
            const T* four = p + group * kShort * channels;
            auto row = [&](int u) {
                prefetch(four + u * channels + ahead);  // one with each read: four at once cost a third more
                return read(four + u * channels);
            };
            const vf v0 = row(0), v1 = row(1), v2 = row(2), v3 = row(3);
            add_four(v0, v1, v2, v3, s, q);
        });
        store2(sum + j, s);
        store2(squares + j, q);
    };
    auto get = [](const T* p) { return N::get(p, 0); };
    auto get_tail = [](int64_t n) { return [n](const T* p) { return N::get_tail(p, n, N::set(0)); }; };
    for_tiles<kUnroll>(begin, end, channels, [&](int64_t r, int64_t first, int64_t last, auto rows) {
        auto column = [&](int64_t j, auto&& read) {
            if constexpr (kShortSums<T> && rows % kShort == 0) short_column(x + r * channels + j, j, rows, read);
            else wide_column(x + r * channels + j, j, rows, read);
        };
        for_columns(first, last, [&](int64_t j) { column(j, get); }, [&](int64_t j, int64_t n) { column(j, get_tail(n)); });
    });
    if constexpr (kShortSums<T>) {
        auto again = [&](int64_t j, int64_t n, auto&& read) {
            if (in_range(load2(squares + j), n)) return;
            store2(sum + j, zero2());
            store2(squares + j, zero2());
            for (int64_t r = begin; r < end; ++r)
                wide_column(x + r * channels + j, j, std::integral_constant<int, 1>{}, read);
        };
        for_columns(
            channels, [&](int64_t j) { again(j, kLanes, get); },
            [&](int64_t j, int64_t n) { again(j, n, get_tail(n)); });
    }
}

// The shifts of `wide` channels: per channel the median of three elements; zero where sums are short.
template <class T> void rows_shifts(const T* x, int64_t rows, int64_t channels, double* k) {
    using N = Num<T>;
    if (kShortSums<T>) return std::fill(k, k + padded(channels), 0.0);
    const T *first = x, *middle = x + rows / 2 * channels, *last = x + (rows - 1) * channels;
    auto column = [&](int64_t j, auto&& read) {
        store2(k + j, median_of_three(widen(read(first + j)), widen(read(middle + j)), widen(read(last + j))));
    };
    for_columns(
        channels, [&](int64_t j) { column(j, [](const T* p) { return N::get(p, 0); }); },
        [&](int64_t j, int64_t n) { column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); }); });
}

template <class T, Act A, bool R> struct RowsForward {
    using Row = InRow<T>;
    using N = Num<Row>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;

    const ChannelForward& a;
    const int64_t own, times;                 // channels; rows taken as one
    const int64_t channels, rows, wide, bit_row;  // of such rows
    const T *x, *residual;
    T* y;
    const bool stream, ahead;

    explicit RowsForward(const ChannelForward& a_)
        : RowsForward(a_, prefetches(a_.shape.count(), a_.shape.c, sizeof(T)),
                      rows_in_one<T>(a_.shape.count(), a_.shape.c, a_.bits)) {}

    // beyond: whether the second sweep finds its rows beyond L2.
    RowsForward(const ChannelForward& a_, bool beyond, int64_t times_ = 1)
        : a(a_), own(a_.shape.c), times(times_), channels(own * times), rows(a_.shape.count() / times),
          wide(padded(channels)), bit_row((channels + 7) / 8),
          x(static_cast<const T*>(a_.x)), residual(static_cast<const T*>(a_.residual)), y(static_cast<T*>(a_.y)),
          stream(outgrows_cache(a_.shape.elements() * int64_t(sizeof(T))) && channels % N::kCount == 0 &&
                 aligned_for_stream(y)),
          ahead(beyond || a_.mean.data != nullptr) {}

    void write(const Columns<Scalar>& k, int64_t begin, int64_t end) const {
        if (stream) write_rows<kStreamUnroll<T>, true>(k, begin, end);
        else write_rows<kWriteUnroll, false>(k, begin, end);
    }

    template <int kTogether, bool Stream> void write_rows(const Columns<Scalar>& k, int64_t begin, int64_t end) const {
        for_tiles<kTogether>(begin, end, channels, [&](int64_t r, int64_t first, int64_t last, auto unroll) {
            auto column = [&, code = a.activation.code](int64_t j, auto&& read, auto&& put, auto&& put_signs) {
                const V m = N::get_constants(k.m + j), scale = N::get_constants(k.scale + j);
                const V shift = N::get_constants(k.shift + j);
                const int64_t stride = channels, at = r * stride + j;
                const T *xp = x + at, *rp = R ? residual + at : xp;
                T* yp = y + at;
                uint8_t* bits = R && a.bits ? a.bits + r * bit_row + j / 8 : nullptr;
                const bool fetch = ahead || kWriteAhead<T> > 0;
                const int64_t next = std::max(kWriteUnroll * stride, kWriteAhead<T>);
                const int64_t next_y = std::max(stride, kWriteAhead<T>);
                repeat<unroll>([&](auto u) {
                    const int64_t here = u * stride;
                    if (fetch) prefetch(xp + here + next);
                    if (R) prefetch(rp + here + next);
                    if (!Stream) prefetch_to_write(yp + here + next_y);  // float32: further ahead costs up to a fifth
                    V z = fma(read(xp + here) - m, scale, shift);
                    if (R) z = z + read(rp + here);
                    if (R && bits) put_signs(bits + u * bit_row, Activate<Row>::sign(code, z));
                    put(yp + here, Activate<Row>::template value<A>(a.activation, z));
                });
            };
            for_columns<N::kCount>(
                first, last,
                [&](int64_t j) {
                    column(j, [](const T* p) { return N::get(p, 0); },
                           [](T* p, V v) { Stream ? N::put_stream(p, v) : N::put(p, v); },
                           [](uint8_t* p, uint32_t bits) { put_bits<N::kCount>(p, bits); });
                },
                [&](int64_t j, int64_t n) {
                    column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                           [&](T* p, V v) { N::put_tail(p, v, n); },
                           [&](uint8_t* p, uint32_t bits) { put_bits_tail<N::kCount>(p, bits, n); });
                });
        });
    }

    // The constants of channels [first, last) from the sums of all blocks, or from given statistics.
    void merge(const RowsPlan& plan, const double* k, const double* partial, const Columns<Scalar>& out, int64_t first,
               int64_t last) const {
        for (int64_t c = first; c < last; c += kLanes) {
            Statistics2 st;
            if (a.mean.data != nullptr) {
                st = given_statistics(a.mean, a.var, c, own, a.eps);
            } else {
                D2 sum = zero2(), squares = zero2();
                for (int64_t b = 0; b < plan.blocks; ++b) {
                    sum = sum + load2(partial + 2 * b * wide + c);
                    squares = squares + load2(partial + (2 * b + 1) * wide + c);
                }
                st = finish(sum, squares, load2(k + c), rows * times, a.eps);
            }
            write_statistics(a.stats, c, own, own, st);
            out.set_affine(c, st.mean, st.rstd, param_at(a.weight, c, own, 1.0), param_at(a.bias, c, own, 0.0));
        }
    }

    void run(const Parallel& parallel) const {
        const RowsPlan plan = plan_rows(rows, channels);
        const int64_t bytes = rows * channels * int64_t(sizeof(T));
        double* k = scratch(wide * (1 + 2 * plan.blocks) + Columns<Scalar>::doubles(channels));
        double* partial = k + wide;  // (blocks, 2, wide)
        const Columns<Scalar> constants(partial + 2 * plan.blocks * wide, channels);
        constants.clear_behind(channels);
        const bool given = a.mean.data != nullptr;
        if (!given) {
            rows_shifts(x, rows * times, own, k);
            if (times > 1) repeat_columns(k, own, times), std::fill(k + channels, k + wide, 0.0);
        }
        const Sweep sums{given ? 0 : plan.blocks, bytes, [&](int64_t b) {
                             double* found = partial + 2 * b * wide;
                             rows_sums(x, plan.begin(b), plan.end(b), channels, k, found, found + wide);
                         }};
        const int64_t merges = times > 1 ? 1 : (channels + kMergeChannels - 1) / kMergeChannels;
        const Sweep merged{merges, 16 * channels * (given ? 1 : plan.blocks), [&](int64_t i) {
                               if (times == 1)
                                   return merge(plan, k, partial, constants, i * kMergeChannels,
                                                std::min(channels, (i + 1) * kMergeChannels));
                               if (!given) fold_blocks(partial, plan.blocks, wide, own, times);
                               merge({rows, 1}, k, partial, constants, 0, own);
                               for (Scalar* field : {constants.m, constants.scale, constants.shift})
                                   repeat_columns(field, own, times);
                           }};
        const Sweep output{y == nullptr ? 0 : plan.blocks, bytes, [&](int64_t b) {
                               for_chunks_backwards(plan.begin(b), plan.end(b), channels * int64_t(sizeof(T)),
                                                    [&](int64_t first, int64_t last) { write(constants, first, last); });
                           }, !given};
        in_turn(parallel, [&] { if (stream) stream_fence(); }, sums, merged, output);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
