// Run-time facts (dtype, activation, residual) into template arguments, once per call.
#pragma once
#include <type_traits>

#include "gradient.h"

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

// float32 and bfloat16 are what networks run on: their common activations have forms of their own. The others share the
// general form, which looks the activation up at each vector: a third of the code and of the build time.
template <class T> constexpr bool kOwnForms = std::is_same_v<T, float> || std::is_same_v<T, bf16>;

template <class T, class F> void with_activation(const ActivationSpec& spec, bool residual, F&& f) {
    auto pick = [&](auto act) {
        if (residual) f(act, std::true_type{});
        else f(act, std::false_type{});
    };
    if constexpr (kOwnForms<T>) {
        if (spec.code == kIdentity) return pick(std::integral_constant<Act, Act::kNone>{});
        if (spec.code == kRelu) return pick(std::integral_constant<Act, Act::kRelu>{});
    }
    pick(std::integral_constant<Act, Act::kAny>{});
}

template <class T, class F> void with_gate(const ActivationSpec& spec, bool bits, bool residual, F&& f) {
    using std::integral_constant;
    const Gate gate = gate_of(spec, bits);
    if (gate == Gate::kBits) return f(integral_constant<Gate, Gate::kBits>{}, std::false_type{});
    if constexpr (kOwnForms<T>) {
        if (gate == Gate::kOpen) return f(integral_constant<Gate, Gate::kOpen>{}, std::false_type{});
        // relu behind a residual comes with bits
        if (gate == Gate::kRelu && !residual) return f(integral_constant<Gate, Gate::kRelu>{}, std::false_type{});
    }
    if (residual) return f(integral_constant<Gate, Gate::kAny>{}, std::true_type{});
    return f(integral_constant<Gate, Gate::kAny>{}, std::false_type{});
}

}  // namespace NK_ISA
}  // namespace normkit
