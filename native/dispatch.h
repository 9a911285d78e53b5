// The table of kernels of one instruction set, and the choice among them.
//
// The choice is made once, at load: the widest set that the CPU has, or the one that NORMKIT_ISA names.
#pragma once
#include "parallel.h"
#include "view.h"

namespace normkit {

struct Kernels {
    const char* name;
    void (*channel_forward)(const ChannelForward&, const Parallel&);
    void (*channel_backward)(const ChannelBackward&, const Parallel&);
    void (*group_forward)(const GroupForward&, const Parallel&);
    void (*group_backward)(const GroupBackward&, const Parallel&);
    void (*layer_forward)(const LayerForward&, const Parallel&);
    void (*layer_backward)(const LayerBackward&, const Parallel&);
};

const Kernels& baseline_kernels();
const Kernels& avx2_kernels();    // defined where the build has them: NK_AVX2, NK_AVX512
const Kernels& avx512_kernels();

// name: "" or null for the widest, else "baseline", "avx2" or "avx512". Null, with a message, where that cannot run.
const Kernels* choose_kernels(const char* name, const char** problem);

}  // namespace normkit
