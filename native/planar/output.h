// What a forward writes from, layout (N, C, S), and the sweeps that write it: compiled once for batch norm and group norm,
// in planar_sweeps.cpp. A kernel looks them up once a call.
#pragma once
#include <cstdint>

#include "plan/planar_plan.h"
#include "plan/streams.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> struct PlanarOutput {
    const ActivationSpec& activation;
    const Shape& s;
    const T *x, *residual;
    T* y;
    uint8_t* bits;
    const bool stream, staged;

    explicit PlanarOutput(const ChannelForward& a)
        : activation(a.activation), s(a.shape), x(static_cast<const T*>(a.x)),
          residual(static_cast<const T*>(a.residual)), y(static_cast<T*>(a.y)), bits(a.bits),
          stream(streams(a.shape, sizeof(T), a.residual != nullptr)), staged(stream && stages(a.shape)) {}
};

// The input is fetched `ahead` elements further on; 0: nothing new.
template <class T> struct PlanarWriters {
    using Constants = Columns<typename Num<T>::Scalar>;

    // `count` rows that follow each other in memory from `row` on, each with constants of its own, to `to`.
    void (*rows)(const PlanarOutput<T>&, const Constants&, int64_t row, int64_t count, T* to, bool streaming,
                 int64_t ahead);
    // Segments [begin, end) of channel c to their places in y, the last first, with the constants at `i`.
    void (*segments)(const PlanarOutput<T>&, const Constants&, int64_t i, const PlanarPlan&, int64_t c, int64_t begin,
                     int64_t end, bool streaming, int64_t ahead);
};

template <class T> PlanarWriters<T> planar_writers(const ActivationSpec& activation, bool residual);

}  // namespace NK_ISA
}  // namespace normkit
