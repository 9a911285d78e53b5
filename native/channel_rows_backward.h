// Statistics across the batch, channels last: the backward of batch norm. The sweeps are those of channel_rows.h.
#pragma once
#include "channel_rows.h"

namespace normkit {
namespace NK_ISA {

template <class T, Gate G, bool R> struct RowsBackward {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;
    using In = Incoming<T, G, R>;

    const ChannelBackward& a;
    const int64_t channels, rows, wide, bit_row;
    const RowsPlan plan;
    const T *dy, *x, *residual;
    T *dx, *dresidual;
    const bool stream, ahead;

    explicit RowsBackward(const ChannelBackward& a_)
        : a(a_), channels(a_.shape.c), rows(a_.shape.n * a_.shape.s), wide(padded(channels)), bit_row(a_.shape.bit_row()),
          plan(plan_rows(rows, channels)), dy(static_cast<const T*>(a_.dy)), x(static_cast<const T*>(a_.x)),
          residual(static_cast<const T*>(a_.residual)), dx(static_cast<T*>(a_.dx)), dresidual(static_cast<T*>(a_.dresidual)),
          stream(streams(a_.shape, sizeof(T)) && channels % kLanes == 0 && aligned_for_stream(dx) &&
                 aligned_for_stream(dresidual)),
          ahead(prefetches(rows, channels, 2 * sizeof(T))) {}

    // Walks one group of rows: per vector column, body(j, in, read, bits_of, put) with reads that stop at the row's end.
    In incoming(const Columns<Scalar>& k, int64_t j) const {
        return In(a.activation, N::get_constants(k.m + j), N::get_constants(k.scale + j), N::get_constants(k.shift + j));
    }

    // total[j] += S dz, dot[j] += S dz * (x - m) over rows [begin, end), from exact products: dz may vanish where the
    // sums nearly cancel.
    void sums(const Columns<Scalar>& k, int64_t begin, int64_t end, double* total, double* dot) const {
        auto group = [&](int64_t r, auto unroll) {
            auto column = [&](int64_t j, auto&& read, auto&& read_signs) {
                const In in = incoming(k, j);
                const D2 m = widen(in.m);
                D2 t = load2(total + j), d = load2(dot + j);
                for (int u = 0; u < decltype(unroll)::value; ++u) {
                    const int64_t at = (r + u) * channels + j;
                    if (ahead) prefetch(x + at + kWriteUnroll * channels);
                    if (ahead) prefetch(dy + at + kWriteUnroll * channels);
                    const V xv = read(x + at);
                    D2 dz = widen(in(read(dy + at), xv - in.m, R ? read(residual + at) : xv,
                                     In::kReadsBits ? read_signs(a.bits + (r + u) * bit_row + j / 8) : 0));
                    t = t + dz;
                    d = fma(dz, widen(xv) - m, d);
                }
                store2(total + j, t);
                store2(dot + j, d);
            };
            for_columns(
                channels, [&](int64_t j) { column(j, [](const T* p) { return N::get(p, 0); }, get_bits); },
                [&](int64_t j, int64_t n) {
                    column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                           [&](const uint8_t* p) { return get_bits_tail(p, n); });
                });
        };
        int64_t r = begin;
        for (; r + kWriteUnroll <= end; r += kWriteUnroll) group(r, std::integral_constant<int, kWriteUnroll>{});
        for (; r < end; ++r) group(r, std::integral_constant<int, 1>{});
    }

    void write(const Columns<Scalar>& k, int64_t begin, int64_t end) const {
        auto group = [&](int64_t r, auto unroll) {
            auto column = [&](int64_t j, auto&& read, auto&& read_signs, auto&& put) {
                const In in = incoming(k, j);
                const V rs = N::get_constants(k.rstd + j), sa = N::get_constants(k.a + j);
                const V sb = N::get_constants(k.b + j), sc = N::get_constants(k.c + j);
                for (int u = 0; u < decltype(unroll)::value; ++u) {
                    const int64_t at = (r + u) * channels + j;
                    if (ahead) prefetch(x + at + kWriteUnroll * channels);
                    if (ahead) prefetch(dy + at + kWriteUnroll * channels);
                    V centered = read(x + at) - in.m;
                    V dz = in(read(dy + at), centered, R ? read(residual + at) : centered,
                              In::kReadsBits ? read_signs(a.bits + (r + u) * bit_row + j / 8) : 0);
                    if (dx) put(dx + at, fma(sb, centered * rs, fma(sa, dz, sc)));
                    if (dresidual) put(dresidual + at, dz);
                }
            };
            for_columns(
                channels,
                [&](int64_t j) {
                    auto read = [](const T* p) { return N::get(p, 0); };
                    if (stream) column(j, read, get_bits, [](T* p, V v) { N::put_stream(p, v); });
                    else column(j, read, get_bits, [](T* p, V v) { N::put(p, v); });
                },
                [&](int64_t j, int64_t n) {
                    column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                           [&](const uint8_t* p) { return get_bits_tail(p, n); },
                           [&](T* p, V v) { N::put_tail(p, v, n); });
                });
        };
        int64_t r = begin;
        for (; r + kWriteUnroll <= end; r += kWriteUnroll) group(r, std::integral_constant<int, kWriteUnroll>{});
        for (; r < end; ++r) group(r, std::integral_constant<int, 1>{});
    }

    void merge(const Columns<Scalar>& k, const double* partial, int64_t first, int64_t last) const {
        Columns<Scalar> out = k;
        for (int64_t c = first; c < last; ++c) {
            const double mean = a.stats[c], rstd = a.stats[2 * channels + c], w = a.weight.at(c, 1.0);
            double total = 0.0, dot = 0.0;
            if (partial)
                for (int64_t b = 0; b < plan.blocks; ++b) {
                    total += partial[2 * b * wide + c];
                    dot += partial[(2 * b + 1) * wide + c];
                }
            const GradientSums sums = center<Scalar>(mean, rstd, total, dot * rstd);
            a.dweight.put(c, sums.dz_xhat);
            a.dbias.put(c, sums.dz);
            out.set(c, a.training ? slope<Scalar>(mean, rstd, w, sums, rows) : Slope<Scalar>{Scalar(w * rstd), 0, 0});
        }
    }

    void run(const Parallel& parallel) const {
        const int64_t bytes = 2 * rows * channels * int64_t(sizeof(T));
        const bool sums_wanted = a.training || a.dweight.data || a.dbias.data;
        double* partial = scratch(2 * wide * plan.blocks + Columns<Scalar>::doubles(channels));
        Columns<Scalar> k(partial + 2 * plan.blocks * wide, channels);
        for (int64_t c = 0; c < channels; ++c) {
            const double mean = a.stats[c], rstd = a.stats[2 * channels + c];
            k.set(c, affine<Scalar>(mean, rstd, a.weight.at(c, 1.0), a.bias.at(c, 0.0)));
            k.rstd[c] = Scalar(rstd);
        }
        if (sums_wanted)
            parallel(plan.blocks, bytes, [&](int64_t begin, int64_t end) {
                for (int64_t b = begin; b < end; ++b) {
                    double* sums_of = partial + 2 * b * wide;
                    std::fill(sums_of, sums_of + 2 * wide, 0.0);
                    sums(k, b * plan.rows_per_block, std::min(rows, (b + 1) * plan.rows_per_block), sums_of, sums_of + wide);
                }
            });
        parallel((channels + kMergeChannels - 1) / kMergeChannels, 16 * plan.blocks * channels, [&](int64_t begin, int64_t end) {
            merge(k, sums_wanted ? partial : nullptr, begin * kMergeChannels, std::min(channels, end * kMergeChannels));
        });
        if (!dx && !dresidual) return;
        parallel(plan.blocks, bytes, [&](int64_t begin, int64_t end) {
            for_chunks_backwards(begin * plan.rows_per_block, std::min(rows, end * plan.rows_per_block),
                                 2 * channels * int64_t(sizeof(T)),
                                 [&](int64_t first, int64_t last) { write(k, first, last); });
            if (stream) stream_fence();
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
