// The kernels that were chosen and the threads they run on; a call without the GIL.
#pragma once
#include <cstdint>

#include "dispatch.h"
#include "parallel.h"
#include "torch.h"

namespace normkit {

inline const Kernels* kernels = nullptr;
inline const char* isa_problem = "";  // why the set that was asked for last is not in use
inline Parallel parallel;

// Runs a kernel, without the GIL where that pays.
template <class Call> void without_gil(int64_t bytes, Call&& call) {
    if (bytes <= kSerialBytes) return call();
    nb::gil_scoped_release release;
    call();
}

}  // namespace normkit
