// What a forward writes from, rows of channels, and its sweeps: compiled once for batch norm and group norm, in
// rows_sweeps.cpp. A kernel looks them up once a call.
#pragma once
#include <cstdint>

#include "plan/streams.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct RowsOutput {
    const ActivationSpec& activation;
    const int64_t channels, bit_row;  // of the rows as they are taken
    const T *x, *residual;
    T* y;
    uint8_t* bits;
    const bool stream, once;  // once: given statistics, x was not looked at before

    RowsOutput(const ChannelForward& a, int64_t channels_)
        : activation(a.activation), channels(channels_), bit_row((channels + 7) / 8), x(static_cast<const T*>(a.x)),
          residual(static_cast<const T*>(a.residual)), y(static_cast<T*>(a.y)), bits(a.bits),
          stream(outgrows_cache(a.shape.elements() * int64_t(sizeof(T))) && channels % Num<InRow<T>>::kCount == 0 &&
                 aligned_for_stream(y)),
          once(a.mean.data != nullptr) {}
};

// Writes rows [begin, end).
template <class T>
using RowsWriter = void (*)(const RowsOutput<T>&, const Columns<typename Num<T>::Scalar>&, int64_t begin, int64_t end);
template <class T> RowsWriter<T> rows_writer(const ActivationSpec& activation, bool residual);

// sum[j] = S(x - k), squares[j] = S(x - k)^2 over rows [begin, end) for all padded(C) channels.
template <class T>
void rows_sums(const T* x, int64_t begin, int64_t end, int64_t channels, const double* k, double* sum, double* squares);
// The shifts of padded(C) channels: per channel the median of three elements; zero where sums are short.
template <class T> void rows_shifts(const T* x, int64_t rows, int64_t channels, double* k);

}  // namespace NK_ISA
}  // namespace normkit
