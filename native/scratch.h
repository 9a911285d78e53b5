// Scratch memory of the calling thread, kept between calls: a fresh allocation costs page faults each time.
#pragma once
#include <cstdint>

namespace normkit {

// Who asks: a thread that starts a parallel loop also works in it, so the two keep apart.
enum class Scratch { kCall, kTask };

// Uninitialized doubles, valid until the same thread asks again for the same use. Aligned to 64 bytes.
template <Scratch Use = Scratch::kCall> double* scratch(int64_t count);

}  // namespace normkit
