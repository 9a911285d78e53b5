// The kernels that were chosen and the threads they run on; a call without the GIL.
#pragma once
#include <cstdlib>
#include <string>

#include "dispatch.h"
#include "tensor.h"

namespace normkit {

inline const Kernels* kernels = nullptr;
inline std::string problem;
inline Parallel parallel;

inline void choose() {
    const char* asked = std::getenv("NORMKIT_ISA");
    const char* why = nullptr;
    kernels = choose_kernels(asked, &why);
    if (kernels == nullptr) {
        problem = std::string("NORMKIT_ISA=") + asked + ": " + why;
        kernels = choose_kernels(nullptr, &why);
    }
}

// Runs a kernel, without the GIL where that pays.
template <class Call> void without_gil(int64_t bytes, Call&& call) {
    if (bytes <= kSerialBytes) return call();
    nb::gil_scoped_release release;
    call();
}

}  // namespace normkit
