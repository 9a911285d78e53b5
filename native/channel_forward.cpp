#include "channel_planar.h"
#include "channel_rows.h"
#include "forms.h"
#include "isa.h"
#include "planar_inference.h"

namespace normkit {
namespace NK_ISA {

template <class T> void channel_forward_of(const ChannelForward& a, const Parallel& parallel) {
    with_activation<T>(a.activation, a.residual != nullptr, [&](auto act, auto residual) {
        constexpr Act A = decltype(act)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) RowsForward<T, A, R>(a).run(parallel);
        else if (a.mean.data != nullptr) PlanarInference<T, A, R>(a).run(parallel);
        else PlanarForward<T, A, R>(a).run(parallel);
    });
}

void channel_forward(const ChannelForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { channel_forward_of<decltype(t)>(a, parallel); });
}

}  // namespace NK_ISA
}  // namespace normkit
