// The binding layer: the functions of the module. src/normkit/_native.pyi describes them to Python.
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "arguments.h"
#include "autograd.h"
#include "channel_calls.h"
#include "channel_operands.h"
#include "dispatch.h"
#include "edge.h"
#include "element_calls.h"
#include "kernels_in_use.h"
#include "layer_calls.h"
#include "older_torch.h"
#include "parallel.h"
#include "pool.h"
#include "ready.h"
#include "reuse.h"
#include "running.h"
#include "torch.h"
#include "view.h"

using namespace normkit;

namespace {

constexpr int kInterface = 12;  // goes up with any change of these functions; core.py holds the same number

nb::tuple channel_forward_tuple(nb::handle input, nb::handle residual, nb::handle weight, nb::handle bias,
                                nb::handle mean, nb::handle var, nb::handle groups, nb::handle eps, nb::handle code,
                                nb::handle param, nb::handle save, nb::handle sizes) {
    const Edge edge;
    const ChannelOperands of(edge, channels_of(edge, input), residual, weight, bias, whole(groups, "groups"),
                             activation_of(code, param));
    if (mean.is_none() != var.is_none() || (of.groups > 0 && !mean.is_none()))
        edge.refuse(PyExc_ValueError, "mean",
                    " and var must both be given or both be None, and None where there are groups");
    const Slices slices(edge, whole_numbers(sizes, "sizes"), of);
    const bool keep = flag(save, "save");
    const auto made = channel_forward(of, edge.vector(mean, of.shape.c, "mean"), edge.vector(var, of.shape.c, "var"),
                                      number(eps, "eps"), {keep, keep}, slices);
    return nb::make_tuple(made.y.object(), made.stats.object(), made.bits.object());
}

nb::tuple channel_backward_tuple(nb::handle dy, nb::handle input, nb::handle residual, nb::handle bits,
                                 nb::handle weight, nb::handle bias, nb::handle stats, nb::handle groups,
                                 nb::handle training, nb::handle code, nb::handle param, nb::handle need_input,
                                 nb::handle need_weight, nb::handle need_bias, nb::handle need_residual,
                                 nb::handle sizes, nb::handle count) {
    const Edge edge;
    const ChannelOperands of(edge, channels_of(edge, input), residual, weight, bias, whole(groups, "groups"),
                             activation_of(code, param));
    const Slices slices(edge, whole_numbers(sizes, "sizes"), of);
    const auto made =
        channel_backward(of, edge.like(Edge::given(dy, "grad_output"), of.x, "grad_output"), of.bits(edge, bits),
                         edge.statistics(stats, of.sets(), slices.count()), flag(training, "training"),
                         {flag(need_input, "need_input"), flag(need_weight, "need_weight"),
                          flag(need_bias, "need_bias"), flag(need_residual, "need_residual")},
                         slices, whole(count, "count"));
    return nb::make_tuple(made.input.object(), made.weight.object(), made.bias.object(), made.residual.object());
}

nb::object channel_statistics_object(nb::handle input) {
    return channel_statistics(channels_of(Edge(), input)).object();
}

nb::tuple layer_forward_tuple(nb::handle input, nb::handle residual, nb::handle width, nb::handle rms,
                              nb::handle weight, nb::handle bias, nb::handle eps, nb::handle save) {
    const Edge edge;
    const LayerOperands of(edge, edge.real(Edge::given(input, "input"), "input"), whole(width, "width"),
                           flag(rms, "rms"), weight, bias, residual);
    const auto made = layer_forward(of, number(eps, "eps"), flag(save, "save"));
    return nb::make_tuple(made.y.object(), made.stats.object(), made.sum.object());
}

nb::tuple layer_backward_tuple(nb::handle dy, nb::handle dsum, nb::handle input, nb::handle width, nb::handle rms,
                               nb::handle weight, nb::handle bias, nb::handle stats, nb::handle need_input,
                               nb::handle need_weight, nb::handle need_bias) {
    const Edge edge;
    const LayerOperands of(edge, edge.real(Edge::given(input, "input"), "input"), whole(width, "width"),
                           flag(rms, "rms"), weight, bias);
    const auto made =
        layer_backward(of, edge.like(Edge::given(dy, "grad_output"), of.x, "grad_output"),
                       edge.like(dsum, of.x, "grad_sum"), edge.statistics(stats, of.rows),
                       flag(need_input, "need_input"), flag(need_weight, "need_weight"), flag(need_bias, "need_bias"));
    return nb::make_tuple(made.input.object(), made.weight.object(), made.bias.object());
}

nb::tuple element_forward_tuple(nb::handle input, nb::handle weight, nb::handle bias, nb::handle scale,
                                nb::handle shift, nb::handle mean, nb::handle var, nb::handle kind, nb::handle size,
                                nb::handle eps, nb::handle save) {
    const Edge edge;
    const ElementOperands of(edge, input, weight, bias, scale, kind, size);
    const auto made =
        element_forward(of, edge.like(Edge::given(shift, "shift"), of.x, "shift"), edge.vector(mean, of.period, "mean"),
                        edge.vector(var, of.period, "var"), number(eps, "eps"), flag(save, "save"));
    return nb::make_tuple(made.z.object(), made.stats.object());
}

nb::tuple element_backward_tuple(nb::handle dz, nb::handle input, nb::handle weight, nb::handle bias, nb::handle scale,
                                 nb::handle kind, nb::handle size, nb::handle stats, nb::handle training,
                                 nb::handle need_input, nb::handle need_weight, nb::handle need_bias,
                                 nb::handle need_scale) {
    const Edge edge;
    const ElementOperands of(edge, input, weight, bias, scale, kind, size);
    const auto made = element_backward(of, edge.like(Edge::given(dz, "grad_output"), of.x, "grad_output"),
                                       edge.statistics(stats, of.sets), flag(training, "training"),
                                       {flag(need_input, "need_input"), flag(need_weight, "need_weight"),
                                        flag(need_bias, "need_bias"), flag(need_scale, "need_scale")});
    return nb::make_tuple(made.input.object(), made.weight.object(), made.bias.object(), made.scale.object());
}

nb::object is_ready(nb::handle input, nb::handle weight, nb::handle bias, nb::handle residual, nb::handle running,
                    nb::handle kind, nb::handle size, nb::handle training) {
    return nb::bool_(fused_ready(input, weight, bias, residual, running, kind, size, training));
}

nb::object is_plain_gradient(nb::handle dy) { return nb::bool_(plain_gradient(dy)); }

// stats: (3, C), or its first two rows.
nb::object move_running_by(nb::handle stats_, nb::handle count, nb::handle mean, nb::handle var, nb::handle batches,
                           nb::handle momentum) {
    const Edge edge;
    const Tensor stats = edge.real(Edge::given(stats_, "stats"), "stats").contiguous();
    if (stats.dtype() != kFloat64 || stats.rank() != 2 || stats.size(0) < 2)
        edge.refuse(PyExc_RuntimeError, "stats", " must be float64 of shape (3, C) or (2, C)");
    const auto moved = move_running_statistics(edge, stats.data<const double>(), stats.size(1), whole(count, "count"),
                                               mean, var, batches, momentum);
    return moved ? nb::object(nb::bool_(*moved)) : nb::none();
}

// torch's table of DLPack functions where torch has none. offset: where the at::Tensor lies in a Python object.
nb::object older_table(const nb::dict& functions, Py_ssize_t offset, nb::object data_ptr, nb::object from_dlpack) {
    OlderTorch::Functions found{};
    address(found.dim, functions, "aoti_torch_get_dim");
    address(found.sizes, functions, "aoti_torch_get_sizes");
    address(found.strides, functions, "aoti_torch_get_strides");
    address(found.dtype, functions, "aoti_torch_get_dtype");
    address(found.device_type, functions, "aoti_torch_get_device_type");
    return OlderTorch::table(found, offset, std::move(data_ptr), std::move(from_dlpack));
}

// The address of a loop like torch_parallel_for, over libgomp.
uintptr_t older_loop(const nb::dict& functions) {
    GompLoop::Functions found{};
    address(found.parallel, functions, "GOMP_parallel");
    address(found.team_size, functions, "omp_get_num_threads");
    address(found.thread, functions, "omp_get_thread_num");
    address(found.max_threads, functions, "_ZN2at15get_num_threadsEv");
    address(found.in_region, functions, "_ZN2at18in_parallel_regionEv");
    return reinterpret_cast<uintptr_t>(GompLoop::over(found));
}

// A function of positional arguments as Python calls it, without nanobind's dispatch: at (16, 8) that would be felt.
template <auto function> struct Entry;
template <class Result, class... Arguments, Result (*function)(Arguments...)> struct Entry<function> {
    static constexpr Py_ssize_t kCount = sizeof...(Arguments);

    static PyObject* call(PyObject*, PyObject* const* given, Py_ssize_t count) noexcept {
        try {
            if (count != kCount)
                raise(PyExc_TypeError,
                      "expected " + std::to_string(kCount) + " arguments, got " + std::to_string(count));
            return with(given, std::index_sequence_for<Arguments...>());
        } catch (nb::python_error& error) {
            error.restore();
        } catch (const std::bad_alloc&) {
            PyErr_NoMemory();
        } catch (const std::exception& error) {
            PyErr_SetString(PyExc_RuntimeError, error.what());
        }
        return nullptr;
    }

    template <size_t... i> static PyObject* with(PyObject* const* given, std::index_sequence<i...>) {
        return nb::object(function(nb::handle(given[i])...)).release().ptr();
    }
};

template <auto function> PyMethodDef method(const char* name) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Entry<function>::call)), METH_FASTCALL,
            nullptr};
}

PyMethodDef methods[] = {
    method<&is_ready>("ready"),
    method<&is_plain_gradient>("plain_gradient"),
    method<&fused_inference>("fused_inference"),
    method<&fused_forward>("fused_forward"),
    method<&fused_backward>("fused_backward"),
    method<&added_backward>("added_backward"),
    method<&channel_forward_tuple>("channel_forward"),
    method<&channel_backward_tuple>("channel_backward"),
    method<&channel_statistics_object>("channel_statistics"),
    method<&layer_forward_tuple>("layer_forward"),
    method<&layer_backward_tuple>("layer_backward"),
    method<&element_forward_tuple>("element_forward"),
    method<&element_backward_tuple>("element_backward"),
    method<&move_running_by>("move_running"),
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

NB_MODULE(_native, m) {
    kernels = choose_kernels(nullptr, &isa_problem);
    m.attr("INTERFACE") = kInterface;
    m.def("set_torch", [](nb::handle names) { found_torch() = new Torch(names); });
    m.def("older_table", &older_table);
    m.def("older_loop", &older_loop);
    m.def("isa", [] { return kernels == nullptr ? "" : kernels->name; });  // "": isa_problem says why
    m.def("use_isa", [](const char* name) {  // whether this CPU and build have it; kernels change if so
        const Kernels* found = choose_kernels(name, &isa_problem);
        if (found != nullptr) kernels = found;
        return found != nullptr;
    });
    m.def("isa_problem", [] { return isa_problem; });  // why use_isa said no, the last time it did
    m.def("set_parallel",
          [](uintptr_t address) { parallel.loop = loop_over(reinterpret_cast<ParallelFunction>(address)); });
    m.def("keep_memory", [](int64_t bytes) { blocks().limit(bytes); });
    m.def("kept_memory", [] { return blocks().waiting(); });
    if (PyModule_AddFunctions(m.ptr(), methods) != 0) nb::raise_python_error();
}
