#include "group/planar.h"
#include "group/planar_backward.h"
#include "group/rows.h"
#include "group/rows_backward.h"
#include "isa.h"
#include "parallel.h"
#include "view.h"
#include "with_type.h"

namespace normkit {
namespace NK_ISA {

void group_forward(const GroupForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) {
        if (a.shape.channels_last) GroupRowsForward<decltype(t)>(a).run(parallel);
        else GroupPlanarForward<decltype(t)>(a).run(parallel);
    });
}

void group_backward(const GroupBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) {
        if (a.shape.channels_last) GroupRowsBackward<decltype(t)>(a).run(parallel);
        else GroupPlanarBackward<decltype(t)>(a).run(parallel);
    });
}

}  // namespace NK_ISA
}  // namespace normkit
