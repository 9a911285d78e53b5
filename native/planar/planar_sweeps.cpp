// The sweeps over planar tensors, all forms of them, for batch norm and group norm.
#include "forms.h"
#include "planar/block.h"
#include "planar/frozen.h"
#include "planar/gradient.h"
#include "planar/gradient_write.h"
#include "planar/output.h"
#include "planar/write.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> PlanarWriters<T> planar_writers(const ActivationSpec& activation, bool residual) {
    PlanarWriters<T> found{};
    with_activation<T>(activation, residual, [&](auto act, auto added) {
        using Form = PlanarWrite<T, decltype(act)::value, decltype(added)::value>;
        found = {Form::rows, Form::segments};
    });
    return found;
}

template <class T>
PlanarGradientSweeps<T> planar_gradient_sweeps(const ActivationSpec& activation, bool bits, bool residual) {
    PlanarGradientSweeps<T> found{};
    with_gate<T>(activation, bits, residual, [&](auto gate) {
        using Form = PlanarGradientForms<T, decltype(gate)::value>;
        using Frozen = PlanarFrozenForm<T, decltype(gate)::value>;
        found = {Form::template sum_rows<1>,
                 Form::template sum_rows<2>,
                 Form::template sum_rows<kRowsAtOnce>,
                 Form::sum_segments,
                 Form::write_rows,
                 Form::write_segments,
                 Frozen::template block<1>,
                 Frozen::template block<kRowsAtOnce>};
    });
    return found;
}

#define NK_INSTANTIATE(T)                                                     \
    template PlanarWriters<T> planar_writers<T>(const ActivationSpec&, bool); \
    template PlanarGradientSweeps<T> planar_gradient_sweeps<T>(const ActivationSpec&, bool, bool);
NK_INSTANTIATE(float)
NK_INSTANTIATE(double)
NK_INSTANTIATE(bf16)
NK_INSTANTIATE(f16)

}  // namespace NK_ISA
}  // namespace normkit
