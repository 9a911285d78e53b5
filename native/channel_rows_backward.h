// Statistics across the batch, channels last: the backward of batch norm. The sweeps are those of channel_rows.h; where
// the statistics are constants dx = a * dz needs no sums, and one sweep makes all.
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
    const int64_t own, times;                     // channels; rows taken as one
    const int64_t channels, rows, wide, bit_row;  // of such rows
    const T *dy, *x, *residual;
    T *dx, *dresidual;
    const bool stream, ahead;

    explicit RowsBackward(const ChannelBackward& a_)
        : RowsBackward(a_, prefetches(a_.shape.count(), a_.shape.c, 2 * sizeof(T)),
                       rows_in_one<T>(a_.shape.count(), a_.shape.c, a_.bits)) {}

    RowsBackward(const ChannelBackward& a_, bool beyond, int64_t times_ = 1)
        : a(a_), own(a_.shape.c), times(times_), channels(own * times), rows(a_.shape.count() / times),
          wide(padded(channels)), bit_row((channels + 7) / 8),
          dy(static_cast<const T*>(a_.dy)), x(static_cast<const T*>(a_.x)),
          residual(static_cast<const T*>(a_.residual)), dx(static_cast<T*>(a_.dx)), dresidual(static_cast<T*>(a_.dresidual)),
          stream(outgrows_cache(a_.shape.elements() * int64_t(sizeof(T))) &&
                 channels % Num<InRow<T>>::kCount == 0 && aligned_for_stream(dx) && aligned_for_stream(dresidual)),
          ahead(beyond) {}

    // E: as whose vectors the elements are taken.
    template <class E> Incoming<E, G, R> incoming(const Columns<Scalar>& k, int64_t j) const {
        return {a.activation, Num<E>::get_constants(k.m + j), Num<E>::get_constants(k.scale + j),
                Num<E>::get_constants(k.shift + j)};
    }

    // What rows below (r, j) bring, kRows of them: term(u, xv, dz) with dz behind the gate.
    template <int kRows, class Read, class ReadSigns, class Term>
    NK_INLINE void terms(const In& in, int64_t r, int64_t j, Read&& read, ReadSigns&& read_signs, Term&& term) const {
        const int64_t stride = channels, at = r * stride + j;
        const T *xp = x + at, *gp = dy + at, *rp = R ? residual + at : xp;
        const uint8_t* bits = In::kReadsBits ? a.bits + r * bit_row + j / 8 : nullptr;
        const int64_t bit_stride = bit_row, further = fetch_distance<T>(kRows * stride);
        repeat<kRows>([&](auto u) {
            const int64_t here = u * stride, next = here + further;
            prefetch(xp + next);
            prefetch(gp + next);
            if (R) prefetch(rp + next);
            const V xv = read(xp + here);
            term(u, xv, in(read(gp + here), xv - in.m, R ? read(rp + here) : xv,
                           In::kReadsBits ? read_signs(bits + u * bit_stride) : 0));
        });
    }

    // total[j] = S dz, dot[j] = S dz * (x - m) over rows [begin, end), from exact products: dz may vanish where the sums
    // nearly cancel. Of 16-bit types four rows are added in float32 first. kWrites: dx = a * dz and dresidual, too.
    template <bool kWrites = false>
    void sums(const Columns<Scalar>& k, int64_t begin, int64_t end, double* total, double* dot) const {
        std::fill(total, total + wide, 0.0);
        std::fill(dot, dot + wide, 0.0);
        for_tiles<kWriteUnroll>(begin, end, channels, [&](int64_t r, int64_t first, int64_t last, auto rows_) {
            auto column = [&](int64_t j, auto&& read, auto&& read_signs, auto&& put) {
                constexpr int kRows = decltype(rows_)::value;
                const In in = incoming<T>(k, j);
                D2 t = load2(total + j), d = load2(dot + j);
                const V sa = kWrites ? N::get_constants(k.a + j) : in.m;
                const int64_t stride = channels, at = r * stride + j;
                T *to = kWrites && dx ? dx + at : nullptr, *to_dz = kWrites && dresidual ? dresidual + at : nullptr;
                auto write = [&](int u, V dz) NK_IN_PLACE {
                    const int64_t here = u * stride;
                    if (to) put(to + here, sa * dz, stride);
                    if (to_dz) put(to_dz + here, dz, stride);
                };
                if constexpr (kShortProducts<T>) {
                    const V rs = N::get_constants(k.rstd + j);
                    ShortProducts<kRows> sums;
                    terms<kRows>(in, r, j, read, read_signs, [&](auto u, V xv, V dz) {
                        sums.template add<u>(dz, (xv - in.m) * rs);
                        if (kWrites) write(u, dz);
                    });
                    t = t + widen(sums.total());
                    d = d + widen(sums.dot());
                } else {
                    const D2 m = widen(in.m);
                    terms<kRows>(in, r, j, read, read_signs, [&](auto u, V xv, V dz_) {
                        const D2 dz = widen(dz_);
                        t = t + dz;
                        d = fma(dz, widen(xv) - m, d);
                        if (kWrites) write(u, dz_);
                    });
                }
                store2(total + j, t);
                store2(dot + j, d);
            };
            for_columns(
                first, last,
                [&](int64_t j) {
                    column(j, [](const T* p) { return N::get(p, 0); }, [](const uint8_t* p) { return get_bits(p); },
                           [&](T* p, V v, int64_t next) {
                               if (stream) return N::put_stream(p, v);
                               prefetch_to_write(p + next);
                               N::put(p, v);
                           });
                },
                [&](int64_t j, int64_t n) {
                    column(j, [&](const T* p) { return N::get_tail(p, n, N::set(0)); },
                           [&](const uint8_t* p) { return get_bits_tail(p, n); },
                           [&](T* p, V v, int64_t) { N::put_tail(p, v, n); });
                });
        });
        if constexpr (kShortProducts<T>)  // they are of xhat
            for (int64_t j = 0; j < wide; j += kLanes) store2(dot + j, load2(dot + j) / load_wide(k.rstd + j));
    }

    void write(const Columns<Scalar>& k, int64_t begin, int64_t end) const {
        if (stream) write_rows<kStreamUnroll<T>, true>(k, begin, end);
        else write_rows<kWriteUnroll, false>(k, begin, end);
    }

    template <int kTogether, bool Stream> void write_rows(const Columns<Scalar>& k, int64_t begin, int64_t end) const {
        using W = Num<InRow<T>>;
        using Wide = typename W::V;
        for_tiles<kTogether>(begin, end, channels, [&](int64_t r, int64_t first, int64_t last, auto unroll) {
            auto column = [&](int64_t j, auto&& read, auto&& read_signs, auto&& put) {
                const auto in = incoming<InRow<T>>(k, j);
                const Wide rs = W::get_constants(k.rstd + j), sa = W::get_constants(k.a + j);
                const Wide sb = W::get_constants(k.b + j), sc = W::get_constants(k.c + j);
                const int64_t stride = channels, at = r * stride + j, bit_stride = bit_row;
                const T *xp = x + at, *gp = dy + at, *rp = R ? residual + at : xp;
                T *to = dx ? dx + at : nullptr, *to_dz = dresidual ? dresidual + at : nullptr;
                const uint8_t* bits = In::kReadsBits ? a.bits + r * bit_row + j / 8 : nullptr;
                const bool fetch = ahead || kWriteAhead<T> > 0;
                const int64_t next = std::max(kWriteUnroll * stride, kWriteAhead<T>);
                const int64_t next_y = std::max(stride, kWriteAhead<T>);
                repeat<unroll>([&](auto u) {
                    const int64_t here = u * stride;
                    if (fetch) prefetch(xp + here + next);
                    if (fetch) prefetch(gp + here + next);
                    if (!Stream && to) prefetch_to_write(to + here + next_y);
                    if (!Stream && to_dz) prefetch_to_write(to_dz + here + next_y);
                    const Wide centered = read(xp + here) - in.m;
                    const Wide dz = in(read(gp + here), centered, R ? read(rp + here) : centered,
                                       In::kReadsBits ? read_signs(bits + u * bit_stride) : 0);
                    if (to) put(to + here, fma(sb, centered * rs, fma(sa, dz, sc)));
                    if (to_dz) put(to_dz + here, dz);
                });
            };
            for_columns<W::kCount>(
                first, last,
                [&](int64_t j) {
                    column(j, [](const T* p) { return W::get(p, 0); },
                           [](const uint8_t* p) { return get_bits<W::kCount>(p); },
                           [](T* p, Wide v) { Stream ? W::put_stream(p, v) : W::put(p, v); });
                },
                [&](int64_t j, int64_t n) {
                    column(j, [&](const T* p) { return W::get_tail(p, n, W::set(0)); },
                           [&](const uint8_t* p) { return get_bits_tail<W::kCount>(p, n); },
                           [&](T* p, Wide v) { W::put_tail(p, v, n); });
                });
        });
    }

    // m, scale, shift and rstd of channels [first, last); dx's constants where they depend on no sums.
    void prepare(const Columns<Scalar>& k, int64_t first, int64_t last) const {
        for (int64_t c = first; c < last; c += kLanes) {
            const D2 mean = load_head(a.stats + c, own - c), rstd = load_head(a.stats + 2 * own + c, own - c);
            const D2 weight = param_at(a.weight, c, own, 1.0);
            k.set_affine(c, mean, rstd, weight, param_at(a.bias, c, own, 0.0));
            store_as(k.rstd + c, rstd);
            if (!a.training) k.set_slope(c, mean, rstd, weight, zero2(), zero2());
        }
    }

    // dweight, dbias and the constants of dx from the sums of all blocks.
    void merge(const RowsPlan& plan, const Columns<Scalar>& k, const double* partial, int64_t first, int64_t last) const {
        const D2 each = both_halves(-1.0 / double(a.values()));
        for (int64_t c = first; c < last; c += kLanes) {
            const D2 mean = load_head(a.stats + c, own - c), rstd = load_head(a.stats + 2 * own + c, own - c);
            D2 total = zero2(), dot = zero2();
            for (int64_t b = 0; b < plan.blocks; ++b) {
                total = total + load2(partial + 2 * b * wide + c);
                dot = dot + load2(partial + (2 * b + 1) * wide + c);
            }
            const D2 dz_xhat = k.center(c, mean, rstd, total, dot), weight = param_at(a.weight, c, own, 1.0);
            put_param(a.dweight, c, own, dz_xhat);
            put_param(a.dbias, c, own, total);
            if (a.training) k.set_slope(c, mean, rstd, weight, weight * total * each, weight * dz_xhat * each);
        }
    }

    void run(const Parallel& parallel) const {
        const RowsPlan plan = plan_rows(rows, channels);
        const int64_t bytes = 2 * rows * channels * int64_t(sizeof(T));
        double* partial = scratch(2 * wide * plan.blocks + Columns<Scalar>::doubles(channels));
        const Columns<Scalar> k(partial + 2 * plan.blocks * wide, channels);
        k.clear_behind(channels);
        prepare(k, 0, own);
        auto repeat_all = [&] {
            if (times == 1) return;
            for (Scalar* field : {k.m, k.scale, k.shift, k.rstd, k.a, k.b, k.c}) repeat_columns(field, own, times);
        };
        repeat_all();
        const bool once = !a.training && !(stream && sizeof(T) == 2);
        const bool summed = a.training || a.dweight.data || a.dbias.data;
        const Sweep found{summed ? plan.blocks : 0, bytes, [&](int64_t b) {
                              double* of_block = partial + 2 * b * wide;
                              if (once) sums<true>(k, plan.begin(b), plan.end(b), of_block, of_block + wide);
                              else sums(k, plan.begin(b), plan.end(b), of_block, of_block + wide);
                          }};
        const int64_t merges = times > 1 ? 1 : (channels + kMergeChannels - 1) / kMergeChannels;
        const Sweep merged{summed ? merges : 0, 16 * plan.blocks * channels, [&](int64_t i) {
                               if (times == 1)
                                   return merge(plan, k, partial, i * kMergeChannels,
                                                std::min(channels, (i + 1) * kMergeChannels));
                               fold_blocks(partial, plan.blocks, wide, own, times);
                               merge({rows, 1}, k, partial, 0, own);
                               repeat_all();
                           }};
        const bool written = (dx || dresidual) && !(summed && once);
        const Sweep output{written ? plan.blocks : 0, bytes, [&](int64_t b) {
                               for_chunks_backwards(plan.begin(b), plan.end(b), 2 * channels * int64_t(sizeof(T)),
                                                    [&](int64_t first, int64_t last) { write(k, first, last); });
                           }, summed};
        in_turn(parallel, [&] { if (stream) stream_fence(); }, found, merged, output);
    }
};

}  // namespace NK_ISA
}  // namespace normkit
