// Statistics across the batch, layout (N, S, C) seen as rows of C: batch norm with channels last, and (N, C).
//
// Whole-row sweeps, kUnroll rows at a time: the sums of all channels lie in a small array that stays in L1. Each block of
// rows makes partial sums; they are merged in block order; a second sweep, backwards in chunks (its first rows are the
// ones that the first sweep left in cache), writes the output. Where rows are wide
// and the tensor outgrows the cache each vector prefetches the one below it in the next group of rows: the hardware
// follows too few of the streams that a group makes.
#pragma once
#include "activation.h"
#include "channel_plan.h"
#include "channel_planar.h"
#include "gradient.h"

namespace normkit {
namespace NK_ISA {

constexpr int kUnroll = 8;
constexpr int kWriteUnroll = 4;
constexpr int64_t kChunkBytes = 64 * 1024;
constexpr int64_t kMergeChannels = 64;  // channels of one task of the merge

inline int64_t padded(int64_t c) { return (c + kLanes - 1) / kLanes * kLanes; }

inline bool prefetches(int64_t rows, int64_t channels, int64_t element_bytes) {
    return channels * element_bytes >= 512 && rows * channels * element_bytes >= (int64_t(4) << 20);
}

// The vector columns of a row: full(j) for each whole vector, tail(j, n) for what is left.
template <class Full, class Tail> NK_INLINE void for_columns(int64_t channels, Full&& full, Tail&& tail) {
    int64_t j = 0;
    for (; j + kLanes <= channels; j += kLanes) full(j);
    if (j < channels) tail(j, channels - j);
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

// Per-channel constants for vector loads, each padded(C) long, carved from a piece of scratch memory.
template <class Scalar> struct Columns {
    Scalar *m, *scale, *shift, *rstd, *a, *b, *c;
    static int64_t doubles(int64_t channels) { return 7 * padded(channels); }
    Columns(double* memory, int64_t channels) {
        for (Scalar** field : {&m, &scale, &shift, &rstd, &a, &b, &c}) {
            *field = reinterpret_cast<Scalar*>(memory);
            memory += padded(channels);
        }
    }
    void set(int64_t i, Affine<Scalar> f) { m[i] = f.m; scale[i] = f.scale; shift[i] = f.shift; }
    void set(int64_t i, Slope<Scalar> f) { a[i] = f.a; b[i] = f.b; c[i] = f.c; }
};

// sum[j] += S(x - k), squares[j] += S(x - k)^2 over rows [begin, end).
template <class T>
void rows_sums(const T* x, int64_t begin, int64_t end, int64_t channels, const double* k, double* sum, double* squares,
               bool ahead) {
    using N = Num<T>;
    auto rows = [&](int64_t r, auto unroll) {
        constexpr int kRows = decltype(unroll)::value;
        auto column = [&](int64_t j, auto&& read) {
            D2 s = load2(sum + j), q = load2(squares + j);
            const D2 kj = load2(k + j);
            for (int u = 0; u < kRows; ++u) {
                if (ahead) prefetch(x + (r + u + kRows) * channels + j);
                D2 d = widen(read(x + (r + u) * channels + j)) - kj;
                s = s + d;
                q = fma(d, d, q);
            }
            store2(sum + j, s);
            store2(squares + j, q);
        };
        for_columns(
            channels, [&](int64_t j) { column(j, [](const T* p) { return N::get(p, 0); }); },
            [&](int64_t j, int64_t n) { column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); }); });
    };
    int64_t r = begin;
    for (; r + kUnroll <= end; r += kUnroll) rows(r, std::integral_constant<int, kUnroll>{});
    for (; r < end; ++r) rows(r, std::integral_constant<int, 1>{});
}

template <class T, Act A, bool R> struct RowsForward {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;

    const ChannelForward& a;
    const int64_t channels, rows, wide;
    const RowsPlan plan;
    const T *x, *residual;
    T* y;
    const bool stream, ahead;

    explicit RowsForward(const ChannelForward& a_)
        : a(a_), channels(a_.shape.c), rows(a_.shape.n * a_.shape.s), wide(padded(channels)),
          plan(plan_rows(rows, channels)), x(static_cast<const T*>(a_.x)), residual(static_cast<const T*>(a_.residual)),
          y(static_cast<T*>(a_.y)), stream(streams(a_.shape, sizeof(T)) && channels % kLanes == 0 && aligned_for_stream(y)),
          ahead(prefetches(rows, channels, sizeof(T))) {}

    void write(const Columns<Scalar>& k, int64_t begin, int64_t end) const {
        const int64_t bit_row = a.shape.bit_row();
        auto group = [&](int64_t r, auto unroll) {
            auto column = [&](int64_t j, auto&& read, auto&& put, auto&& put_signs) {
                const V m = N::get_constants(k.m + j), scale = N::get_constants(k.scale + j);
                const V shift = N::get_constants(k.shift + j);
                for (int u = 0; u < decltype(unroll)::value; ++u) {
                    const int64_t at = (r + u) * channels + j;
                    if (ahead) prefetch(x + at + kWriteUnroll * channels);
                    if (R && ahead) prefetch(residual + at + kWriteUnroll * channels);
                    V z = fma(read(x + at) - m, scale, shift);
                    if (R) z = z + read(residual + at);
                    if (R && a.bits) put_signs(a.bits + (r + u) * bit_row + j / 8, Activate<T>::sign(a.activation.code, z));
                    put(y + at, Activate<T>::template value<A>(a.activation, z));
                }
            };
            for_columns(
                channels,
                [&](int64_t j) {
                    auto read = [](const T* p) { return N::get(p, 0); };
                    if (stream) column(j, read, [](T* p, V v) { N::put_stream(p, v); }, put_bits);
                    else column(j, read, [](T* p, V v) { N::put(p, v); }, put_bits);
                },
                [&](int64_t j, int64_t n) {
                    column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                           [&](T* p, V v) { N::put_tail(p, v, n); },
                           [&](uint8_t* p, uint32_t bits) { put_bits_tail(p, bits, n); });
                });
        };
        int64_t r = begin;
        for (; r + kWriteUnroll <= end; r += kWriteUnroll) group(r, std::integral_constant<int, kWriteUnroll>{});
        for (; r < end; ++r) group(r, std::integral_constant<int, 1>{});
    }

    void run(const Parallel& parallel) const {
        const bool given = a.mean.data != nullptr;
        const int64_t bytes = rows * channels * int64_t(sizeof(T));
        double* k = scratch(wide * (1 + 2 * plan.blocks) + Columns<Scalar>::doubles(channels));
        double* partial = k + wide;  // (blocks, 2, wide)
        Columns<Scalar> constants(partial + 2 * plan.blocks * wide, channels);
        auto block_end = [&](int64_t b) { return std::min(rows, (b + 1) * plan.rows_per_block); };

        if (!given) {
            for (int64_t c = 0; c < wide; ++c) k[c] = 0.0;
            for (int64_t c = 0; c < channels; ++c)
                k[c] = median_of_three(value_of(x[c]), value_of(x[rows / 2 * channels + c]), value_of(x[(rows - 1) * channels + c]));
            parallel(plan.blocks, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t b = begin; b < end; ++b) {
                    double* sums = partial + 2 * b * wide;
                    std::fill(sums, sums + 2 * wide, 0.0);
                    rows_sums(x, b * plan.rows_per_block, block_end(b), channels, k, sums, sums + wide,
                              ahead);
                }
            });
        }
        parallel((channels + kMergeChannels - 1) / kMergeChannels, 16 * plan.blocks * channels, [&](int64_t begin, int64_t end) {
            for (int64_t c = begin * kMergeChannels; c < std::min(channels, end * kMergeChannels); ++c) {
                Statistics st;
                if (given) {
                    st = given_statistics<T>(a, c);
                } else {
                    Sums sums;
                    for (int64_t b = 0; b < plan.blocks; ++b)
                        sums.add({partial[2 * b * wide + c], partial[(2 * b + 1) * wide + c]});
                    st = finish(sums, k[c], rows, a.eps);
                }
                write_statistics(a.stats, c, channels, st);
                constants.set(c, affine<Scalar>(st.mean, st.rstd, a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
            }
        });
        parallel(plan.blocks, bytes, [&](int64_t begin, int64_t end) {
            for_chunks_backwards(begin * plan.rows_per_block, std::min(rows, end * plan.rows_per_block),
                                 channels * int64_t(sizeof(T)),
                                 [&](int64_t first, int64_t last) { write(constants, first, last); });
            if (stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
