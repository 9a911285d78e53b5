#define NK_ISA avx2
#define NK_LEVEL 1
#include "isa.h"

namespace normkit {

const Kernels& avx2_kernels() {
    static const Kernels table = {"avx2",
                                  avx2::channel_forward, avx2::channel_backward,
                                  avx2::group_forward,   avx2::group_backward,
                                  avx2::layer_forward,   avx2::layer_backward};
    return table;
}

}  // namespace normkit
