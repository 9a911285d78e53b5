// The kernels of one instruction set: included by isa_*.cpp after NK_ISA and NK_LEVEL are defined.
//
// Turns run-time facts (dtype, layout, activation, residual) into template arguments, once per call.
#pragma once
#include "dispatch.h"
#include "group_rows_backward.h"
#include "layer_norm_backward.h"
#include "planar_frozen.h"
#include "planar_inference.h"

namespace normkit {
namespace NK_ISA {

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

template <class T> void channel_forward_of(const ChannelForward& a, const Parallel& parallel) {
    with_activation<T>(a.activation, a.residual != nullptr, [&](auto act, auto residual) {
        constexpr Act A = decltype(act)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) RowsForward<T, A, R>(a).run(parallel);
        else if (a.mean.data != nullptr) PlanarInference<T, A, R>(a).run(parallel);
        else PlanarForward<T, A, R>(a).run(parallel);
    });
}

template <class T> void channel_backward_of(const ChannelBackward& a, const Parallel& parallel) {
    with_gate<T>(a.activation, a.bits != nullptr, a.residual != nullptr, [&](auto gate, auto residual) {
        constexpr Gate G = decltype(gate)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) RowsBackward<T, G, R>(a).run(parallel);
        else if (a.training) PlanarBackward<T, G, R>(a).run(parallel);
        else PlanarFrozen<T, G, R>(a).run(parallel);
    });
}

template <class T> void group_forward_of(const GroupForward& a, const Parallel& parallel) {
    with_activation<T>(a.activation, a.residual != nullptr, [&](auto act, auto residual) {
        constexpr Act A = decltype(act)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) GroupRowsForward<T, A, R>(a).run(parallel);
        else GroupPlanarForward<T, A, R>(a).run(parallel);
    });
}

template <class T> void group_backward_of(const GroupBackward& a, const Parallel& parallel) {
    with_gate<T>(a.activation, a.bits != nullptr, a.residual != nullptr, [&](auto gate, auto residual) {
        constexpr Gate G = decltype(gate)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) GroupRowsBackward<T, G, R>(a).run(parallel);
        else GroupPlanarBackward<T, G, R>(a).run(parallel);
    });
}

// f(T{}) with the element type of a dtype code.
template <class F> void with_type(int dtype, F&& f) {
    switch (dtype) {
        case kFloat64: return f(double{});
        case kBFloat16: return f(bf16{});
        case kFloat16: return f(f16{});
        default: return f(float{});
    }
}

void channel_forward(const ChannelForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { channel_forward_of<decltype(t)>(a, parallel); });
}

void channel_backward(const ChannelBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { channel_backward_of<decltype(t)>(a, parallel); });
}

void group_forward(const GroupForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { group_forward_of<decltype(t)>(a, parallel); });
}

void group_backward(const GroupBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { group_backward_of<decltype(t)>(a, parallel); });
}

void layer_forward(const LayerForward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { LayerForwardKernel<decltype(t)>(a).run(parallel); });
}

void layer_backward(const LayerBackward& a, const Parallel& parallel) {
    with_type(a.dtype, [&](auto t) { LayerBackwardKernel<decltype(t)>(a).run(parallel); });
}

}  // namespace NK_ISA
}  // namespace normkit
