// What the core needs of torch, looked up once: the table of DLPack functions, types, a few functions and names.
#pragma once
#include <nanobind/nanobind.h>

#include <string>

#include "dlpack.h"

namespace normkit {

namespace nb = nanobind;

[[noreturn]] inline void raise(PyObject* type, const std::string& text) {
    PyErr_SetString(type, text.c_str());
    throw nb::python_error();
}

inline nb::object owned(PyObject* object) {
    if (object == nullptr) nb::raise_python_error();
    return nb::steal(object);
}

inline const char* class_name(nb::handle object) { return Py_TYPE(object.ptr())->tp_name; }

struct Torch {
    const dlpack::Exchange* exchange = nullptr;
    nb::object tensor, parameter, empty_like, uint8, float64, increment_version;
    nb::object is_recomputation;                // of kernels/core.py
    nb::object contiguous, copy, is_neg, zero;  // methods of torch.Tensor, as functions
    nb::object count_modes;                     // of torch-dispatch modes

    Torch(nb::handle torch, nb::object is_recomputation_) : is_recomputation(std::move(is_recomputation_)) {
        tensor = torch.attr("Tensor");
        nb::object capsule = tensor.attr("__dlpack_c_exchange_api__");
        exchange = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (exchange == nullptr) nb::raise_python_error();
        if (exchange->header.version.major != 1)
            raise(PyExc_RuntimeError, "torch speaks version " + std::to_string(exchange->header.version.major) +
                                          " of DLPack's exchange table, the core version 1");
        if (exchange->allocate == nullptr || exchange->managed_to_object == nullptr ||
            exchange->tensor_from_object == nullptr)
            raise(PyExc_RuntimeError, "torch's table of DLPack functions has gaps");
        parameter = torch.attr("nn").attr("Parameter");
        empty_like = torch.attr("empty_like");
        uint8 = torch.attr("uint8");
        float64 = torch.attr("float64");
        increment_version = torch.attr("autograd").attr("graph").attr("increment_version");
        try {  // what that calls, in half its time: where it takes a tuple
            nb::object direct = torch.attr("_C").attr("_increment_version");
            direct(nb::make_tuple());
            increment_version = direct;
        } catch (const nb::python_error&) {
        }
        contiguous = tensor.attr("contiguous");
        copy = tensor.attr("copy_");
        count_modes = torch.attr("_C").attr("_len_torch_dispatch_stack");
        is_neg = tensor.attr("is_neg");
        zero = tensor.attr("zero_");
    }
};

inline const Torch*& found_torch() {
    static const Torch* found = nullptr;  // kept for ever: at exit Python may be gone before it
    return found;
}

inline const Torch* torch() {
    const Torch* found = found_torch();
    if (found == nullptr)
        raise(PyExc_RuntimeError, "the native core was not given torch: import normkit.kernels.core first");
    return found;
}

// Calls a function of one tensor, and of a tensor and something else.
inline nb::object call(const nb::object& function, nb::handle tensor) {
    PyObject* arguments[] = {tensor.ptr()};
    return owned(PyObject_Vectorcall(function.ptr(), arguments, 1, nullptr));
}

inline nb::object call(const nb::object& function, nb::handle tensor, nb::handle other) {
    PyObject* arguments[] = {tensor.ptr(), other.ptr()};
    return owned(PyObject_Vectorcall(function.ptr(), arguments, 2, nullptr));
}

}  // namespace normkit
