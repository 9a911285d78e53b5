#include "scratch.h"

#include <cstddef>
#include <cstdint>
#include <memory>

namespace normkit {

template <Scratch Use> double* scratch(int64_t count) {
    thread_local std::unique_ptr<double[]> block;
    thread_local int64_t size = 0;
    if (size < count) {
        block.reset(new double[size_t(count) + 8]);
        size = count;
    }
    auto address = reinterpret_cast<uintptr_t>(block.get());
    return reinterpret_cast<double*>((address + 63) / 64 * 64);
}

template double* scratch<Scratch::kCall>(int64_t);
template double* scratch<Scratch::kTask>(int64_t);

}  // namespace normkit
