#define NK_ISA avx512
#define NK_LEVEL 2
#include "isa.h"

namespace normkit {

const Kernels& avx512_kernels() {
    static const Kernels table = {"avx512",
                                  avx512::channel_forward, avx512::channel_backward,
                                  avx512::group_forward,   avx512::group_backward,
                                  avx512::layer_forward,   avx512::layer_backward};
    return table;
}

}  // namespace normkit
