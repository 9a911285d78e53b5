// The two halves of a torch.autograd.Function as one call each: all that an eager forward or backward needs is here.
//
// `norm` is the norm as Python describes it; it is asked to `move` what cannot be moved here. Saved are input, weight,
// bias, residual, mask (never set here), stats and bits; `plan` is what the backward has to know besides.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "arguments.h"
#include "channel_calls.h"
#include "channel_operands.h"
#include "layer_calls.h"
#include "ready.h"
#include "running.h"
#include "tensor.h"
#include "torch.h"
#include "view.h"

namespace normkit {

// The norms that the core computes, by what a set of statistics covers.
enum Kind : int64_t {
    kBatch = 0,   // a channel over the batch
    kGroups = 1,  // a group of a sample's channels; size: how many groups
    kLayer = 2,   // a row of `size` elements
    kRms = 3,     // the same, the mean of squares alone
};

inline Kind kind_of(int64_t value) {
    if (value < kBatch || value > kRms)
        raise(PyExc_ValueError, "argument 'kind' must be 0, 1, 2 or 3, not " + std::to_string(value));
    return Kind(value);
}

// Names that a Function's context is handled with, looked up once.
struct Names {
    nb::object to_save = nb::str("to_save"), saved_tensors = nb::str("saved_tensors"), norm = nb::str("norm"),
               plan = nb::str("plan"), needs = nb::str("needs_input_grad"), move = nb::str("move"),
               materialize = nb::str("materialize_grads");
};

inline const Names& names() {
    static const Names* found = new Names;  // kept for ever: at exit Python may be gone before it
    return *found;
}

inline void set(nb::handle object, const nb::object& name, nb::handle value) {
    if (PyObject_SetAttr(object.ptr(), name.ptr(), value.ptr()) != 0) nb::raise_python_error();
}

inline nb::object get(nb::handle object, const nb::object& name) {
    return owned(PyObject_GetAttr(object.ptr(), name.ptr()));
}

inline void save(nb::handle ctx, nb::handle norm, const nb::tuple& tensors, const nb::tuple& plan) {
    set(ctx, names().to_save, tensors);
    set(ctx, names().norm, norm);
    set(ctx, names().plan, plan);
}

// Moves the running statistics by those of the batch, here where that is one plain step. stats: (3, sets), or bytes.
inline void track(nb::handle norm, const Running& running, const Tensor& stats, bool as_bytes, nb::handle input,
                  const Shape& shape, bool per_channel) {
    const int64_t c = shape.c, count = shape.count();
    // An activation checkpoint's second forward moves no statistics; which forward is one, Python decides.
    if (per_channel && running.deferred.is_none() && count > 1 &&
        owned(PyObject_CallNoArgs(torch()->is_recomputation.ptr())).ptr() == Py_False &&
        move_running_statistics(Edge(), stats.data<const double>(), c, count, running.mean, running.var,
                                running.batches, running.momentum)
            .value_or(false))
        return;
    const nb::object doubles = as_bytes ? stats.object().attr("view")(torch()->float64) : stats.object();
    PyObject* arguments[] = {norm.ptr(), doubles.ptr(), input.ptr()};
    owned(PyObject_VectorcallMethod(names().move.ptr(), arguments, 3, nullptr));
}

// The output. ctx: the Function's context, or None where nothing is saved. running: as above, or None; where there are
// no groups and no training, its mean and var are the statistics.
inline nb::object channels_forward(Looks& looks, nb::handle ctx, nb::handle input, nb::handle weight, nb::handle bias,
                                   nb::handle residual, nb::handle norm, nb::handle running_, Kind kind, int64_t groups,
                                   bool training, double eps, ActivationSpec activation) {
    const Edge edge(looks);
    const bool saves = !ctx.is_none(), given = kind == kBatch && !training;
    std::optional<Running> running;
    if (!running_.is_none() || given) running.emplace(running_);
    const bool tracks = training && running;
    const ChannelOperands of(edge, channels_of(edge, input), residual, weight, bias, groups, activation);
    Tensor mean, var;
    if (given) {
        mean = edge.vector(Edge::given(running->mean, "running_mean"), of.shape.c, "running_mean");
        var = edge.vector(Edge::given(running->var, "running_var"), of.shape.c, "running_var");
    }
    ChannelOutput made = channel_forward(of, mean, var, eps, {saves || tracks, saves, saves});
    if (tracks) track(norm, *running, made.stats, saves, input, of.shape, kind == kBatch);
    if (saves) {
        const bool keeps = activation.code != kIdentity && !made.bits;
        const nb::object none = nb::none();
        const auto tensors = nb::make_tuple(input, weight, bias, keeps ? residual : nb::handle(none), none,
                                            made.stats.object(), made.bits.object());
        const bool last = of.shape.channels_last;
        save(ctx, norm, tensors,
             nb::make_tuple(int64_t(kind), groups, training, activation.code, activation.param, last));
    }
    return made.y.object();
}

// The output; with a residual (output, sum), of which the sum is saved as the input, and whose gradients may be None.
inline nb::object rows_forward(Looks& looks, nb::handle ctx, nb::handle input, nb::handle weight, nb::handle bias,
                               nb::handle residual, nb::handle norm, Kind kind, int64_t width, double eps) {
    const Edge edge(looks);
    const bool saves = !ctx.is_none(), adds = !residual.is_none();
    const LayerOutput made =
        layer_forward({edge, edge.real(input, "input"), width, kind == kRms, weight, bias, residual}, eps, saves, saves);
    const nb::object sum = made.sum.object(), none = nb::none();
    if (saves) {
        save(ctx, norm,
             nb::make_tuple(adds ? nb::handle(sum) : input, weight, bias, none, none, made.stats.object(), none),
             nb::make_tuple(int64_t(kind), width, true, int(kIdentity), 0.0, false));
        if (adds) set(ctx, names().materialize, nb::bool_(false));
    }
    return adds ? nb::object(nb::make_tuple(made.y.object(), sum)) : made.y.object();
}

inline nb::object looked_forward(Looks& looks, nb::handle ctx, nb::handle input, nb::handle weight, nb::handle bias,
                                 nb::handle residual, nb::handle norm, nb::handle running, nb::handle kind_,
                                 nb::handle size_, nb::handle training_, nb::handle eps, nb::handle code,
                                 nb::handle param) {
    const Kind kind = kind_of(whole(kind_, "kind"));
    const int64_t size = whole(size_, "size");
    const bool training = flag(training_, "training");
    const ActivationSpec activation = activation_of(code, param);
    if (kind == kGroups && size < 1)
        raise(PyExc_ValueError, "argument 'size' must be at least 1 group, not " + std::to_string(size));
    if (kind < kLayer)
        return channels_forward(looks, ctx, input, weight, bias, residual, norm, running, kind,
                                kind == kGroups ? size : 0, training, number(eps, "eps"), activation);
    if (activation.code != kIdentity) raise(PyExc_ValueError, "a norm of rows has no activation in the core");
    return rows_forward(looks, ctx, input, weight, bias, residual, norm, kind, size, number(eps, "eps"));
}

// Whether `fused_forward` takes these tensors as they are.
inline bool looked_ready(Looks& looks, nb::handle input, nb::handle weight, nb::handle bias, nb::handle residual,
                         nb::handle running, nb::handle kind_, nb::handle size_, nb::handle training) {
    const Kind kind = kind_of(whole(kind_, "kind"));
    const int64_t size = whole(size_, "size");
    if (kind >= kLayer)
        return rows_ready(looks, input, weight, bias, size) &&
               (residual.is_none() || added_ready(looks, input, residual));
    if (kind == kGroups && size == 0) return false;
    nb::handle mean = nb::handle(Py_None), var = mean;
    if (!running.is_none()) {
        entries(running, 2, "running");
        mean = item(running, 0);
        var = item(running, 1);
    }
    return channels_ready(looks, input, weight, bias, residual, mean, var, kind == kGroups ? size : 0,
                          flag(training, "training"));
}

// Each half alone, and both in one call where no gradient is wanted: the output, or None where the tensors are not ready.
inline nb::object fused_forward(nb::handle ctx, nb::handle input, nb::handle weight, nb::handle bias,
                                nb::handle residual, nb::handle norm, nb::handle running, nb::handle kind,
                                nb::handle size, nb::handle training, nb::handle eps, nb::handle code,
                                nb::handle param) {
    Looks looks;
    return looked_forward(looks, ctx, input, weight, bias, residual, norm, running, kind, size, training, eps, code,
                          param);
}

inline bool fused_ready(nb::handle input, nb::handle weight, nb::handle bias, nb::handle residual, nb::handle running,
                        nb::handle kind, nb::handle size, nb::handle training) {
    Looks looks;
    return looked_ready(looks, input, weight, bias, residual, running, kind, size, training);
}

inline nb::object fused_inference(nb::handle input, nb::handle weight, nb::handle bias, nb::handle residual,
                                  nb::handle norm, nb::handle running, nb::handle kind, nb::handle size,
                                  nb::handle training, nb::handle eps, nb::handle code, nb::handle param) {
    Looks looks;
    if (!looked_ready(looks, input, weight, bias, residual, running, kind, size, training)) return nb::none();
    return looked_forward(looks, nb::handle(Py_None), input, weight, bias, residual, norm, running, kind, size,
                          training, eps, code, param);
}

// What the backward finds on its context.
struct Saved {
    nb::object tensors, plan, needs;

    explicit Saved(nb::handle ctx)
        : tensors(get(ctx, names().saved_tensors)), plan(get(ctx, names().plan)), needs(get(ctx, names().needs)) {
        entries(tensors, 7, "saved_tensors");
        entries(plan, 6, "plan");
        entries(needs, 4, "needs_input_grad");
    }
    nb::handle tensor(int i) const { return item(tensors, i); }
    nb::handle planned(int i) const { return item(plan, i); }
    bool need(int i) const { return item(needs, i).ptr() == Py_True; }
};

// The input in the dtype that the forward saw, whatever a hook on saved tensors made of it.
inline Tensor restored(const Edge& edge, nb::handle saved, const Tensor& dy) {
    const Tensor x = edge.real(Edge::given(saved, "input"), "input");
    edge.verify_sizes(x, dy, "input");
    return x.dtype() == dy.dtype() ? x : Tensor::made(x.object().attr("to")(dy.object().attr("dtype")));
}

// And in its memory order, which is that of the bits.
inline Tensor in_order(const Tensor& x, bool channels_last) {
    if (shape_of(x).channels_last == channels_last) return x;
    if (!channels_last) return x.contiguous();
    return Tensor::made(x.object().attr("movedim")(1, -1).attr("contiguous")().attr("movedim")(-1, 1));
}

// One gradient for each argument of the forward of this ctx. dsum: of the sum of rows and their residual, or None.
inline nb::tuple added_backward(nb::handle ctx, nb::handle dy_, nb::handle dsum_) {
    static const char* note = "; if hooks on saved tensors are in use, unpack has to give back what was packed";
    const Edge edge(note);
    const Saved s(ctx);
    const Kind kind = kind_of(whole(s.planned(0), "kind"));
    const int64_t size = whole(s.planned(1), "size");
    const Tensor dy = Edge().real(Edge::given(dy_, "grad_output"), "grad_output");
    Tensor x = restored(edge, s.tensor(0), dy);
    const nb::object none = nb::none();
    auto gradients = [&](const Tensor& dx, const Tensor& dweight, const Tensor& dbias, const Tensor& dresidual) {
        return nb::make_tuple(dx.object(), dweight.object(), dbias.object(), dresidual.object(), none, none, none, none,
                              none, none, none, none);
    };
    if (kind >= kLayer) {
        const LayerOperands of(edge, x, size, kind == kRms, s.tensor(1), s.tensor(2));
        const Tensor stats = edge.saved_statistics(s.tensor(5), 3 * of.rows);
        const Tensor dsum = edge.like(dsum_, of.x, "grad_sum");
        const auto made =
            layer_backward(of, dy.contiguous(), dsum, stats, s.need(0) || s.need(3), s.need(1), s.need(2));
        return gradients(made.input, made.weight, made.bias, s.need(3) ? made.input : Tensor());
    }
    if (!dsum_.is_none()) raise(PyExc_ValueError, "a norm of channels has no sum of its own");
    if (x.rank() < 2) edge.refuse(PyExc_RuntimeError, "input", " must have at least 2 dimensions (N, C, *)");
    x = in_order(dense(x), flag(s.planned(5), "channels_last"));
    const ChannelOperands of(edge, x, s.tensor(3), s.tensor(1), s.tensor(2), kind == kGroups ? size : 0,
                             activation_of(s.planned(3), s.planned(4)));
    const Tensor stats = edge.saved_statistics(s.tensor(5), 3 * of.sets());
    const auto made = channel_backward(of, dy.like(x), of.bits(edge, s.tensor(6)), stats,
                                       flag(s.planned(2), "training"), {s.need(0), s.need(1), s.need(2), s.need(3)});
    return gradients(made.input, made.weight, made.bias, made.residual);
}

inline nb::tuple fused_backward(nb::handle ctx, nb::handle dy) {
    return added_backward(ctx, dy, nb::handle(Py_None));
}

}  // namespace normkit
