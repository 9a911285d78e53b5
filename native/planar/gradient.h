// What a backward reads and writes, layout (N, C, S), and its sweeps: compiled once for batch norm and group norm, in
// planar_sweeps.cpp. A kernel looks them up once a call.
#pragma once
#include <cstdint>

#include "moments.h"
#include "plan/planar_plan.h"
#include "plan/streams.h"
#include "planar/block.h"
#include "planar/sums.h"
#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// Where a run's inputs lie. Values of its own: those of a class the compiler would look up again after each store.
template <class T> struct GradientSource {
    const T *dy, *x, *r;
    const uint8_t* bits;
};

// Where a run's outputs go: null where not wanted.
template <class T> struct GradientTarget {
    T *dx, *dz;
};

template <class T> struct PlanarGradient {
    using Target = GradientTarget<T>;

    const ActivationSpec& activation;
    const Shape& s;
    const T *dy, *x, *residual;
    const uint8_t* bits;
    T *dx, *dresidual;
    const bool stream, staged;
    const T *next_dx, *next_dz;  // whose lines the first sweep fetches: those that the second one writes

    PlanarGradient(const ChannelBackward& a, bool parts)
        : activation(a.activation), s(a.shape), dy(static_cast<const T*>(a.dy)), x(static_cast<const T*>(a.x)),
          residual(static_cast<const T*>(a.residual)), bits(a.bits), dx(static_cast<T*>(a.dx)),
          dresidual(static_cast<T*>(a.dresidual)), stream(streams(a.shape, sizeof(T), a.dresidual != nullptr)),
          staged(stream && stages(a.shape)), next_dx(fetched(dx, parts)), next_dz(fetched(dresidual, parts)) {}

    Target target(int64_t offset) const {
        return {dx ? dx + offset : nullptr, dresidual ? dresidual + offset : nullptr};
    }
    bool streamable(Target to) const {
        return stream && !staged && aligned_for_stream(to.dx ? to.dx : to.dz) && (!to.dz || aligned_for_stream(to.dz));
    }
    // In: which of the inputs its form reads.
    template <class In> NK_INLINE GradientSource<T> source(const Rows& at) const {
        return {dy + at.offset, x + at.offset, In::kMayAdd && residual ? residual + at.offset : nullptr,
                In::kMayReadBits && bits ? bits + at.bit_byte : nullptr};
    }

  private:
    const T* fetched(const T* output, bool parts) const { return output && !stream && !parts ? output : x; }
};

// The constants of x - m, z and xhat of one channel.
template <class Scalar> struct GradientInput {
    Affine<Scalar> affine;
    Scalar rstd;
};

template <class T> struct PlanarGradientSweeps {
    using Scalar = typename Num<T>::Scalar;
    using Constants = Columns<Scalar>;
    using Gradient = PlanarGradient<T>;
    using SumRows = void (*)(const Gradient&, int64_t row, int64_t count, const Constants&, int64_t from, BlockSums&);

    // Add S dz and S dz * (x - m) of `count` rows that follow each other, each with those below it in the next samples, and
    // with its constants at `from` and on: of one, two, four samples.
    SumRows sum_rows, sum_two_rows, sum_four_rows;
    // The same of segments [begin, end) of channel c.
    void (*sum_segments)(const Gradient&, const GradientInput<Scalar>&, const PlanarPlan&, int64_t c, int64_t begin,
                         int64_t end, LaneSums&);
    // dx and dresidual of `count` rows that follow each other, each with constants of its own.
    void (*write_rows)(const Gradient&, const Constants&, int64_t row, int64_t count, GradientTarget<T>, int64_t next);
    // The same of segments [begin, end) of channel c, the last first, to their places, with the constants at `i`.
    void (*write_segments)(const Gradient&, const Constants&, int64_t i, const PlanarPlan&, int64_t c, int64_t begin,
                           int64_t end, int64_t next);
    // planar/frozen.h, of one and of four samples.
    using Frozen = void (*)(const Gradient&, const Constants&, int64_t per_row, bool sums_wanted, int64_t n,
                            int64_t begin, int64_t end, GradientTarget<T> stage, BlockSums&);
    Frozen frozen, frozen_four;

    SumRows sum_rows_of(int samples) const {
        return samples == 1 ? sum_rows : samples == 2 ? sum_two_rows : sum_four_rows;
    }
};

template <class T>
PlanarGradientSweeps<T> planar_gradient_sweeps(const ActivationSpec& activation, bool bits, bool residual);

}  // namespace NK_ISA
}  // namespace normkit
