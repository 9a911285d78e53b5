// The table of kernels of one instruction set, and the choice among them.
//
// The choice is made once, at load: the widest set that the CPU has, or the one that NORMKIT_ISA names.
#pragma once
#include "element_view.h"
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
    void (*element_forward)(const ElementForward&, const Parallel&);
    void (*element_backward)(const ElementBackward&, const Parallel&);
};

const Kernels& baseline_kernels();  // each is defined where the build has it: NK_BASELINE, ...
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& neon_kernels();

// name: "" or null for the widest, else "baseline", "avx2", "avx512" or "neon". Null, with a message, where that cannot run.
const Kernels* choose_kernels(const char* name, const char** problem);

}  // namespace normkit
