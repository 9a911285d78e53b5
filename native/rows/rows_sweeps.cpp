// The sweeps over rows of channels, all forms of them, for batch norm and group norm.
#include <cstdint>

#include "forms.h"
#include "rows/gradient.h"
#include "rows/gradient_write.h"
#include "rows/output.h"
#include "rows/sums.h"
#include "rows/write.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

template <class T> RowsWriter<T> rows_writer(const ActivationSpec& activation, bool residual) {
    RowsWriter<T> found = nullptr;
    with_activation<T>(activation, residual, [&](auto act, auto added) {
        found = RowsWrite<T, decltype(act)::value, decltype(added)::value>::write;
    });
    return found;
}

template <class T>
RowsGradientSweeps<T> rows_gradient_sweeps(const ActivationSpec& activation, bool bits, bool residual) {
    RowsGradientSweeps<T> found{};
    with_gate<T>(activation, bits, residual, [&](auto gate) {
        using Form = RowsGradientForms<T, decltype(gate)::value>;
        found = {Form::template sums<false>, Form::template sums<true>, Form::write};
    });
    return found;
}

#define NK_INSTANTIATE(T)                                                                             \
    template RowsWriter<T> rows_writer<T>(const ActivationSpec&, bool);                               \
    template RowsGradientSweeps<T> rows_gradient_sweeps<T>(const ActivationSpec&, bool, bool);        \
    template void rows_sums<T>(const T*, int64_t, int64_t, int64_t, const double*, double*, double*); \
    template void rows_shifts<T>(const T*, int64_t, int64_t, double*);
NK_INSTANTIATE(float)
NK_INSTANTIATE(double)
NK_INSTANTIATE(bf16)
NK_INSTANTIATE(f16)

}  // namespace NK_ISA
}  // namespace normkit
