// Run-time facts (activation, bits, residual) into template arguments, once per call.
#pragma once
#include <type_traits>

#include "simd/activation.h"
#include "simd/gradient.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// float32 and bfloat16 are what networks run on: their common activations have forms of their own. The other types share
// forms that look the activation up at each vector; the baseline has one form for all, which asks for everything.
template <class T>
constexpr bool kOwnForms = kCommonForms && (std::is_same_v<T, float> || std::is_same_v<T, bf16>);

template <class T, class F> void with_activation(const ActivationSpec& spec, bool residual, F&& f) {
    auto form = [&](auto act) { residual ? f(act, std::true_type{}) : f(act, std::false_type{}); };
    if constexpr (kOwnForms<T>) {
        if (spec.code == kIdentity) return form(std::integral_constant<Act, Act::kNone>{});
        if (spec.code == kRelu) return form(std::integral_constant<Act, Act::kRelu>{});
    }
    const std::integral_constant<Act, Act::kAny> any;
    if constexpr (kCommonForms) form(any);
    else f(any, std::true_type{});
}

template <class T, class F> void with_gate(const ActivationSpec& spec, bool bits, bool residual, F&& f) {
    using std::integral_constant;
    if constexpr (!kCommonForms) return f(integral_constant<Gate, Gate::kAny>{});
    else {
        if (spec.code != kIdentity && bits) return f(integral_constant<Gate, Gate::kBits>{});
        if constexpr (kOwnForms<T>) {
            if (spec.code == kIdentity) return f(integral_constant<Gate, Gate::kOpen>{});
            // relu after a residual comes with bits
            if (spec.code == kRelu && !residual) return f(integral_constant<Gate, Gate::kRelu>{});
        }
        if (residual) return f(integral_constant<Gate, Gate::kAdded>{});
        f(integral_constant<Gate, Gate::kPlain>{});
    }
}

}  // namespace NK_ISA
}  // namespace normkit
