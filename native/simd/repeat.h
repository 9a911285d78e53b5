// Loops that are unrolled at every optimization level, so that sums stay in registers.
#pragma once
#include <type_traits>
#include <utility>

#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

template <class F, int... U> NK_INLINE void repeat(F&& f, std::integer_sequence<int, U...>) {
    (f(std::integral_constant<int, U>{}), ...);
}

// f(0) ... f(count - 1).
template <int kCount, class F> NK_INLINE void repeat(F&& f) { repeat(f, std::make_integer_sequence<int, kCount>{}); }

}  // namespace NK_ISA
}  // namespace normkit
