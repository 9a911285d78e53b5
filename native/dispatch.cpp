#include "dispatch.h"

#include <cstring>

namespace normkit {

namespace {

struct Choice {
    const char* name;
    bool runs;
    const Kernels& (*table)();
};

}  // namespace

const Kernels* choose_kernels(const char* name, const char** problem) {
    const Choice widest_first[] = {
#if defined(NK_AVX512)
        {"avx512",
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"),
         avx512_kernels},
#endif
#if defined(NK_AVX2)
        {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), avx2_kernels},
#endif
#if defined(NK_BASELINE)
        {"baseline", true, baseline_kernels},
#endif
#if defined(NK_NEON)
        {"neon", true, neon_kernels},
#endif
    };
    const bool any = name == nullptr || name[0] == '\0';
    for (const Choice& c : widest_first) {
        if (any ? c.runs : std::strcmp(name, c.name) == 0) {
            if (c.runs) return &c.table();
            *problem = "this CPU does not have it";
            return nullptr;
        }
    }
#if defined(NK_NEON)
    *problem = "expected neon, which this build has alone";
#else
    *problem = any ? "this CPU has none of the instruction sets of this build"
                   : "expected baseline, avx2 or avx512, where this build has it";
#endif
    return nullptr;
}

}  // namespace normkit
