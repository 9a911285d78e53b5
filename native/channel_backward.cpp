#include "channel_planar_backward.h"
#include "channel_rows_backward.h"
#include "forms.h"
#include "isa.h"
#include "planar_frozen.h"

namespace normkit {
namespace NK_ISA {

template <class T> void channel_backward_of(const ChannelBackward& a, const Parallel& parallel) {
    with_gate<T>(a.activation, a.bits != nullptr, a.residual != nullptr, [&](auto gate, auto residual) {
        constexpr Gate G = decltype(gate)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) RowsBackward<T, G, R>(a).run(parallel);
        else if (a.training) PlanarBackward<T, G, R>(a).run(parallel);
        else PlanarFrozen<T, G, R>(a).run(parallel);
    });
}

void channel_backward(const ChannelBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { channel_backward_of<decltype(t)>(a, parallel); });
}

}  // namespace NK_ISA
}  // namespace normkit
