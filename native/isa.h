// The kernels of one instruction set. The .cpp files that include this are compiled once for each, with NK_ISA (its name
// and namespace) and NK_LEVEL (its section of simd.h) defined by kernels.cmake.
//
// All they define belongs into namespace NK_ISA. What a header defines outside of it would be compiled for several sets
// under one name, and the linker would keep any of them.
#pragma once
#include "element_view.h"
#include "parallel.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

void channel_forward(const ChannelForward& a, const Parallel& parallel);
void channel_backward(const ChannelBackward& a, const Parallel& parallel);
void group_forward(const GroupForward& a, const Parallel& parallel);
void group_backward(const GroupBackward& a, const Parallel& parallel);
void layer_forward(const LayerForward& a, const Parallel& parallel);
void layer_backward(const LayerBackward& a, const Parallel& parallel);
void element_forward(const ElementForward& a, const Parallel& parallel);
void element_backward(const ElementBackward& a, const Parallel& parallel);

}  // namespace NK_ISA
}  // namespace normkit
