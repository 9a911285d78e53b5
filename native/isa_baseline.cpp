#define NK_ISA baseline
#define NK_LEVEL 0
#include "isa.h"

namespace normkit {

const Kernels& baseline_kernels() {
    static const Kernels table = {"baseline",
                                  baseline::channel_forward, baseline::channel_backward,
                                  baseline::group_forward,   baseline::group_backward,
                                  baseline::layer_forward,   baseline::layer_backward};
    return table;
}

}  // namespace normkit
