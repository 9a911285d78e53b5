// A dtype code into a template argument, once per call.
#pragma once
#include "view.h"

namespace normkit {
namespace NK_ISA {

// f(T{}) with the element type of a dtype code.
template <class F> void with_type(int dtype, F&& f) {
    switch (dtype) {
        case kFloat64: return f(double{});
        case kBFloat16: return f(bf16{});
        case kFloat16: return f(f16{});
        default: return f(float{});
    }
}

}  // namespace NK_ISA
}  // namespace normkit
