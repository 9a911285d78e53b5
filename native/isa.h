// The kernels of one instruction set: included by isa_*.cpp after NK_ISA and NK_LEVEL are defined.
//
// Turns run-time facts (dtype, layout, activation, residual) into template arguments, once per call.
#pragma once
#include "dispatch.h"
#include "group_rows.h"
#include "layer_norm.h"

namespace normkit {
namespace NK_ISA {

template <class F> void with_activation(const ActivationSpec& spec, bool residual, F&& f) {
    auto pick = [&](auto act) {
        if (residual) f(act, std::true_type{});
        else f(act, std::false_type{});
    };
    if (spec.code == kIdentity) pick(std::integral_constant<Act, Act::kNone>{});
    else if (spec.code == kRelu) pick(std::integral_constant<Act, Act::kRelu>{});
    else pick(std::integral_constant<Act, Act::kAny>{});
}

template <class F> void with_gate(const ActivationSpec& spec, bool bits, bool residual, F&& f) {
    using std::integral_constant;
    switch (gate_of(spec, bits)) {
        case Gate::kOpen: return f(integral_constant<Gate, Gate::kOpen>{}, std::false_type{});
        case Gate::kBits: return f(integral_constant<Gate, Gate::kBits>{}, std::false_type{});
        case Gate::kLeakyBits: return f(integral_constant<Gate, Gate::kLeakyBits>{}, std::false_type{});
        case Gate::kRelu:
            if (residual) return f(integral_constant<Gate, Gate::kRelu>{}, std::true_type{});
            return f(integral_constant<Gate, Gate::kRelu>{}, std::false_type{});
        default:
            if (residual) return f(integral_constant<Gate, Gate::kAny>{}, std::true_type{});
            return f(integral_constant<Gate, Gate::kAny>{}, std::false_type{});
    }
}

template <class T> void channel_forward_of(const ChannelForward& a, const Parallel& parallel) {
    with_activation(a.activation, a.residual != nullptr, [&](auto act, auto residual) {
        constexpr Act A = decltype(act)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) RowsForward<T, A, R>(a).run(parallel);
        else planar_forward<T, A, R>(a, parallel);
    });
}

template <class T> void channel_backward_of(const ChannelBackward& a, const Parallel& parallel) {
    with_gate(a.activation, a.bits != nullptr, a.residual != nullptr, [&](auto gate, auto residual) {
        constexpr Gate G = decltype(gate)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) RowsBackward<T, G, R>(a).run(parallel);
        else PlanarBackward<T, G, R>(a).run(parallel);
    });
}

template <class T> void group_forward_of(const GroupForward& a, const Parallel& parallel) {
    with_activation(a.activation, a.residual != nullptr, [&](auto act, auto residual) {
        constexpr Act A = decltype(act)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) GroupRowsForward<T, A, R>(a).run(parallel);
        else GroupPlanarForward<T, A, R>(a).run(parallel);
    });
}

template <class T> void group_backward_of(const GroupBackward& a, const Parallel& parallel) {
    with_gate(a.activation, a.bits != nullptr, a.residual != nullptr, [&](auto gate, auto residual) {
        constexpr Gate G = decltype(gate)::value;
        constexpr bool R = decltype(residual)::value;
        if (a.shape.channels_last) GroupRowsBackward<T, G, R>(a).run(parallel);
        else GroupPlanarBackward<T, G, R>(a).run(parallel);
    });
}

void channel_forward(const ChannelForward& a, const Parallel& parallel) {
    if (a.dtype == kFloat64) channel_forward_of<double>(a, parallel);
    else channel_forward_of<float>(a, parallel);
}

void channel_backward(const ChannelBackward& a, const Parallel& parallel) {
    if (a.dtype == kFloat64) channel_backward_of<double>(a, parallel);
    else channel_backward_of<float>(a, parallel);
}

void group_forward(const GroupForward& a, const Parallel& parallel) {
    if (a.dtype == kFloat64) group_forward_of<double>(a, parallel);
    else group_forward_of<float>(a, parallel);
}

void group_backward(const GroupBackward& a, const Parallel& parallel) {
    if (a.dtype == kFloat64) group_backward_of<double>(a, parallel);
    else group_backward_of<float>(a, parallel);
}

void layer_forward(const LayerForward& a, const Parallel& parallel) {
    if (a.dtype == kFloat64) LayerForwardKernel<double>(a).run(parallel);
    else LayerForwardKernel<float>(a).run(parallel);
}

void layer_backward(const LayerBackward& a, const Parallel& parallel) {
    if (a.dtype == kFloat64) LayerBackwardKernel<double>(a).run(parallel);
    else LayerBackwardKernel<float>(a).run(parallel);
}

}  // namespace NK_ISA
}  // namespace normkit
