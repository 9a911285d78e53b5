#include "element/backward.h"
#include "element/forward.h"
#include "element_view.h"
#include "isa.h"
#include "parallel.h"
#include "with_type.h"

namespace normkit {
namespace NK_ISA {

void element_forward(const ElementForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { ElementForwardKernel<decltype(t)>(a).run(parallel); });
}

void element_backward(const ElementBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { ElementBackwardKernel<decltype(t)>(a).run(parallel); });
}

}  // namespace NK_ISA
}  // namespace normkit
