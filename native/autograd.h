// The two halves of a torch.autograd.Function as one call each: all that an eager forward or backward needs happens here.
//
// `call` is the norm as Python describes it (functional/_fused.py); it is asked to `move` what cannot be moved here. `plan`
// is what the backward wants to know beside the saved tensors: input, weight, bias, residual, stats, bits.
#pragma once
#include "channel_calls.h"
#include "layer_calls.h"

namespace normkit {

// Names and functions that a Function's context is handled with, looked up once.
struct Names {
    nb::object to_save = nb::str("to_save"), saved_tensors = nb::str("saved_tensors"), call = nb::str("call"),
               plan = nb::str("plan"), needs = nb::str("needs_input_grad"), move = nb::str("move");
    nb::object graph_task = nb::module_::import_("torch._C").attr("_current_graph_task_id");
};

inline const Names& names() {
    static const Names* found = new Names;  // kept for ever: at exit Python may be gone before it
    return *found;
}

inline void set(nb::handle object, const nb::object& name, nb::handle value) {
    if (PyObject_SetAttr(object.ptr(), name.ptr(), value.ptr()) != 0) nb::raise_python_error();
}

inline nb::object get(nb::handle object, const nb::object& name) { return owned(PyObject_GetAttr(object.ptr(), name.ptr())); }

inline nb::handle item(nb::handle tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(tuple.ptr(), i); }

// What the backward finds on its context.
struct Saved {
    nb::object tensors, plan, needs;

    explicit Saved(nb::handle ctx)
        : tensors(get(ctx, names().saved_tensors)), plan(get(ctx, names().plan)), needs(get(ctx, names().needs)) {}
    nb::handle tensor(int i) const { return item(tensors, i); }
    template <class V> V planned(int i) const { return nb::cast<V>(item(plan, i)); }
    bool need(int i) const { return item(needs, i).ptr() == Py_True; }
};

inline void save(nb::handle ctx, nb::handle call, const nb::tuple& tensors, const nb::tuple& plan) {
    set(ctx, names().to_save, tensors);
    set(ctx, names().call, call);
    set(ctx, names().plan, plan);
}

// An activation checkpoint's second forward runs inside a backward; it moves no statistics.
inline bool is_recomputation() {
    return PyLong_AsLong(owned(PyObject_CallNoArgs(names().graph_task.ptr())).ptr()) != -1;
}

// Moves running statistics (mean, var, batches, momentum, deferred) where that is one plain step; whether it was.
inline bool moved(nb::handle running, const Tensor& stats, int64_t count) {
    if (!item(running, 4).is_none() || count < 2 || is_recomputation()) return false;
    std::optional<double> momentum;
    if (!item(running, 3).is_none()) momentum = nb::cast<double>(item(running, 3));
    return move_running_statistics(stats.object(), count, item(running, 0), item(running, 1), item(running, 2), momentum)
        .value_or(false);
}

// The output. ctx: the Function's context, or None where nothing is saved. running: a tuple as above, or None; the
// statistics are its mean and var where there are no groups and no training.
inline nb::object channel_function(nb::handle ctx, nb::handle input, nb::handle weight, nb::handle bias,
                                   nb::handle residual, nb::handle call, nb::handle running, int64_t groups,
                                   bool training, double eps, int code, double param) {
    const bool saves = !ctx.is_none(), tracks = training && !running.is_none(), given = groups == 0 && !training;
    nb::object none = nb::none();
    ChannelOutput made = channel_forward(input, residual, weight, bias, given ? item(running, 0) : none,
                                         given ? item(running, 1) : none, groups, eps, code, param, saves || tracks);
    if (tracks && !(groups == 0 && moved(running, made.stats, made.y.elements() / made.y.size(1)))) {
        PyObject* arguments[] = {call.ptr(), made.stats.object().ptr(), input.ptr()};
        owned(PyObject_VectorcallMethod(names().move.ptr(), arguments, 3, nullptr));
    }
    if (saves) {
        const bool keeps = code != kIdentity && !made.bits;
        save(ctx, call, nb::make_tuple(input, weight, bias, keeps ? residual : none, made.stats.object(), made.bits.object()),
             nb::make_tuple(groups, training, code, param));
    }
    return made.y.object();
}

// Its gradients, one for each argument of the forward behind ctx.
inline nb::tuple channel_gradients(nb::handle ctx, nb::handle dy) {
    const Saved s(ctx);
    auto made = channel_backward(dy, s.tensor(0), s.tensor(3), s.tensor(5), s.tensor(1), s.tensor(2), s.tensor(4),
                                 s.planned<int64_t>(0), s.planned<bool>(1), s.planned<int>(2), s.planned<double>(3),
                                 s.need(0), s.need(1), s.need(2), s.need(3));
    const nb::object none = nb::none();
    return nb::make_tuple(made.input.object(), made.weight.object(), made.bias.object(), made.residual.object(), none, none,
                          none, none, none, none, none);
}

// The same for rows of `width` elements.
inline nb::object layer_function(nb::handle ctx, nb::handle input, nb::handle weight, nb::handle bias, nb::handle call,
                                 int64_t width, bool rms, double eps) {
    LayerOutput made = layer_forward(input, width, rms, weight, bias, eps, !ctx.is_none());
    if (!ctx.is_none()) {
        const nb::object none = nb::none();
        save(ctx, call, nb::make_tuple(input, weight, bias, none, made.stats.object(), none), nb::make_tuple(width, rms));
    }
    return made.y.object();
}

inline nb::tuple layer_gradients(nb::handle ctx, nb::handle dy) {
    const Saved s(ctx);
    auto made = layer_backward(dy, s.tensor(0), s.planned<int64_t>(0), s.planned<bool>(1), s.tensor(1), s.tensor(2),
                               s.tensor(4), s.need(0), s.need(1), s.need(2));
    const nb::object none = nb::none();
    return nb::make_tuple(made.input.object(), made.weight.object(), made.bias.object(), none, none, none, none);
}

}  // namespace normkit
