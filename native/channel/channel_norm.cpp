#include "channel/planar.h"
#include "channel/planar_backward.h"
#include "channel/planar_frozen.h"
#include "channel/planar_inference.h"
#include "channel/rows.h"
#include "channel/rows_backward.h"
#include "isa.h"
#include "parallel.h"
#include "view.h"
#include "with_type.h"

namespace normkit {
namespace NK_ISA {

void channel_forward(const ChannelForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) {
        using T = decltype(t);
        if (a.shape.channels_last) RowsForward<T>(a).run(parallel);
        else if (a.mean.data != nullptr) PlanarInference<T>(a).run(parallel);
        else PlanarForward<T>(a).run(parallel);
    });
}

void channel_backward(const ChannelBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) {
        using T = decltype(t);
        if (a.shape.channels_last) RowsBackward<T>(a).run(parallel);
        else if (a.training) PlanarBackward<T>(a).run(parallel);
        else PlanarFrozen<T>(a).run(parallel);
    });
}

}  // namespace NK_ISA
}  // namespace normkit
