#define NK_ISA avx512
#define NK_LEVEL 2
#include "isa.h"

namespace normkit {

const Kernels& avx512_kernels() {
    static const Kernels table = {"avx512", avx512::channel_forward, avx512::channel_backward};
    return table;
}

}  // namespace normkit
