// The table of this instruction set's kernels: baseline_kernels(), avx2_kernels() and so on.
#include "isa.h"

#include "dispatch.h"

#define NK_JOIN(a, b) a##b
#define NK_TABLE_OF(isa) NK_JOIN(isa, _kernels)
#define NK_QUOTE(a) #a
#define NK_NAME_OF(isa) NK_QUOTE(isa)

namespace normkit {

const Kernels& NK_TABLE_OF(NK_ISA)() {
    static const Kernels table = {NK_NAME_OF(NK_ISA),     NK_ISA::channel_forward, NK_ISA::channel_backward,
                                  NK_ISA::group_forward,  NK_ISA::group_backward,  NK_ISA::layer_forward,
                                  NK_ISA::layer_backward, NK_ISA::element_forward, NK_ISA::element_backward};
    return table;
}

}  // namespace normkit
