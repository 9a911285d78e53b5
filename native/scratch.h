// Scratch memory of the calling thread, kept between calls: a fresh allocation costs page faults each time.
#pragma once
#include <cstdint>
#include <memory>

namespace normkit {

// Who asks: a thread that starts a parallel loop also works in it, so the two keep apart.
enum class Scratch { kCall, kTask };

// Uninitialized doubles, valid until the same thread asks again for the same use. Aligned to 64 bytes.
template <Scratch Use = Scratch::kCall> double* scratch(int64_t count) {
    thread_local std::unique_ptr<double[]> block;
    thread_local int64_t size = 0;
    if (size < count) {
        block.reset(new double[size_t(count) + 8]);
        size = count;
    }
    auto address = reinterpret_cast<uintptr_t>(block.get());
    return reinterpret_cast<double*>((address + 63) / 64 * 64);
}

}  // namespace normkit
