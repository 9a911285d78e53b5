#include "isa.h"
#include "layer/backward.h"
#include "parallel.h"
#include "view.h"
#include "with_type.h"

namespace normkit {
namespace NK_ISA {

void layer_forward(const LayerForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { LayerForwardKernel<decltype(t)>(a).run(parallel); });
}

void layer_backward(const LayerBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { LayerBackwardKernel<decltype(t)>(a).run(parallel); });
}

}  // namespace NK_ISA
}  // namespace normkit
