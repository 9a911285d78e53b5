// What a backward reads and writes, rows of channels, and its sweeps: compiled once for batch norm and group norm, in
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

template <class T> struct RowsGradient {
    const ActivationSpec& activation;
    const int64_t channels, padded_columns, bit_row;  // of the rows as they are taken
    const T *dy, *x, *residual;
    const uint8_t* bits;
    T *dx, *dresidual;
    const bool stream, ahead;

    // beyond: whether the second sweep finds its rows beyond L2.
    RowsGradient(const ChannelBackward& a, int64_t channels_, bool beyond)
        : activation(a.activation), channels(channels_), padded_columns(padded(channels)), bit_row((channels + 7) / 8),
          dy(static_cast<const T*>(a.dy)), x(static_cast<const T*>(a.x)), residual(static_cast<const T*>(a.residual)),
          bits(a.bits), dx(static_cast<T*>(a.dx)), dresidual(static_cast<T*>(a.dresidual)),
          stream(outgrows_cache(a.shape.elements() * int64_t(sizeof(T))) && channels % Num<InRow<T>>::kCount == 0 &&
                 aligned_for_stream(dx) && aligned_for_stream(dresidual)),
          ahead(beyond) {}
};

template <class T> struct RowsGradientSweeps {
    using Constants = Columns<typename Num<T>::Scalar>;
    using Sums = void (*)(const RowsGradient<T>&, const Constants&, int64_t begin, int64_t end, double* total,
                          double* dot);

    Sums sums;          // total[j] = S dz, dot[j] = S dz * (x - m) over rows [begin, end)
    Sums sums_written;  // the same, and dx = a * dz and dresidual are written
    void (*write)(const RowsGradient<T>&, const Constants&, int64_t begin, int64_t end);
};

template <class T>
RowsGradientSweeps<T> rows_gradient_sweeps(const ActivationSpec& activation, bool bits, bool residual);

}  // namespace NK_ISA
}  // namespace normkit
