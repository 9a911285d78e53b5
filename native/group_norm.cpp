#include "forms.h"
#include "group_planar_backward.h"
#include "group_rows_backward.h"
#include "isa.h"

namespace normkit {
namespace NK_ISA {

template <class T> void group_forward_of(const GroupForward& a, const Parallel& parallel) {
    with_activation<T>(a.activation, a.residual != nullptr, [&](auto act, auto residual) {
        constexpr Act A = decltype(act)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) GroupRowsForward<T, A, R>(a).run(parallel);
        else GroupPlanarForward<T, A, R>(a).run(parallel);
    });
}

template <class T> void group_backward_of(const GroupBackward& a, const Parallel& parallel) {
    with_gate<T>(a.activation, a.bits != nullptr, a.residual != nullptr, [&](auto gate, auto residual) {
        constexpr Gate G = decltype(gate)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) GroupRowsBackward<T, G, R>(a).run(parallel);
        else GroupPlanarBackward<T, G, R>(a).run(parallel);
    });
}

void group_forward(const GroupForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { group_forward_of<decltype(t)>(a, parallel); });
}

void group_backward(const GroupBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { group_backward_of<decltype(t)>(a, parallel); });
}

}  // namespace NK_ISA
}  // namespace normkit
