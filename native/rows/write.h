// The writing sweep of rows/output.h, one form of it.
#pragma once
#include <cstdint>

#include "rows/output.h"
#include "rows/tiles.h"
#include "simd/activation.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T, Act A, bool R> struct RowsWrite {
    using Row = InRow<T>;
    using N = Num<Row>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;

    static void write(const RowsOutput<T>& o, const Columns<Scalar>& k, int64_t begin, int64_t end) {
        if (R && o.bits) write_form<R>(o, k, begin, end);
        else write_form<false>(o, k, begin, end);
    }

    // Bits: whether the signs are written, asked once and not at each vector. tried: signs-asked-once
    template <bool Bits>
    static void write_form(const RowsOutput<T>& o, const Columns<Scalar>& k, int64_t begin, int64_t end) {
        if (o.stream) write_rows<kStreamUnroll<T>, true, Bits>(o, k, begin, end);
        else write_rows<kWriteUnroll, false, Bits>(o, k, begin, end);
    }

    template <int kTogether, bool Stream, bool Bits>
    static void write_rows(const RowsOutput<T>& o, const Columns<Scalar>& k, int64_t begin, int64_t end) {
        const int64_t channels = o.channels;
        const ActivationSpec spec = o.activation;
        for_tiles<kTogether>(begin, end, channels, [&](int64_t r, int64_t first, int64_t last, auto unroll) {
            auto column = [&, code = spec.code](int64_t j, auto&& read, auto&& put, auto&& put_signs) {
                const V m = N::get_constants(k.m + j), scale = N::get_constants(k.scale + j);
                const V shift = N::get_constants(k.shift + j);
                const int64_t stride = channels, at = r * stride + j;
                const bool added = R && has<A>(o.residual);
                const T *xp = o.x + at, *rp = added ? o.residual + at : xp;
                T* yp = o.y + at;
                const int64_t bit_row = o.bit_row;
                uint8_t* bits = Bits ? o.bits + r * bit_row + j / 8 : nullptr;
                const int64_t next = std::max(kWriteUnroll * stride, kWriteAhead<T>);
                const int64_t next_y = o.once ? 0 : std::max(stride, kWriteAhead<T>);  // tried: inference-fetch-output
                repeat<unroll>([&](auto u) NK_IN_PLACE {
                    const int64_t here = u * stride;
                    prefetch(xp + here + next);
                    if (added) prefetch(rp + here + next);
                    if (!Stream) prefetch_to_write(yp + here + next_y);  // float32: further ahead costs up to a fifth
                    V z = fma(read(xp + here) - m, scale, shift);
                    if (added) z = z + read(rp + here);
                    if (Bits) put_signs(bits + u * bit_row, Activate<Row>::template sign<A>(code, z));
                    put(yp + here, Activate<Row>::template value<A>(spec, z));
                });
            };
            for_columns<N::kCount>(
                first, last,
                [&](int64_t j) {
                    column(
                        j, [](const T* p) NK_IN_PLACE { return N::get(p, 0); },
                        [](T* p, V v) NK_IN_PLACE { Stream ? N::put_stream(p, v) : N::put(p, v); },
                        [](uint8_t* p, uint32_t bits) NK_IN_PLACE { put_bits<N::kCount>(p, bits); });
                },
                [&](int64_t j, int64_t n) {
                    if constexpr (Stream) return;  // whole vectors alone
                    column(
                        j, [&](const T* p) NK_IN_PLACE { return N::get_tail(p, n, N::set(0)); },
                        [&](T* p, V v) NK_IN_PLACE { N::put_tail(p, v, n); },
                        [&](uint8_t* p, uint32_t bits) NK_IN_PLACE { put_bits_tail<N::kCount>(p, bits, n); });
                });
        });
    }
};

}  // namespace NK_ISA
}  // namespace normkit
