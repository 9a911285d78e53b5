// What the core needs of torch, looked up once: the table of DLPack functions, types, a few functions and names.
#pragma once
#include <nanobind/nanobind.h>

#include <cstdint>
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

inline std::string class_name(nb::handle object) { return nb::str(object.type().attr("__name__")).c_str(); }

// What stands in `functions` under a name: an address.
template <class Function> void address(Function& function, nb::handle functions, const char* name) {
    function = reinterpret_cast<Function>(nb::cast<uintptr_t>(functions[name]));
}

// libtorch's C shim of storages (kernels/storages.py), which takes the at::Tensor inside of a Python tensor.
struct Storages {
    int32_t (*size)(void* tensor, int64_t* bytes) = nullptr;  // null where torch does not show it
    int32_t (*offset)(void* tensor, int64_t* elements) = nullptr;
    Py_ssize_t at = 0;

    Storages() = default;
    explicit Storages(nb::handle functions) {
        if (functions.is_none()) return;
        address(size, functions, "aoti_torch_get_storage_size");
        address(offset, functions, "aoti_torch_get_storage_offset");
        at = nb::cast<Py_ssize_t>(functions["at"]);
    }

    // Whether a storage is known to hold less than `span` elements from where its tensor begins. held, needed: bytes.
    bool is_short(nb::handle tensor, int64_t span, int64_t element_bytes, int64_t& held, int64_t& needed) const {
        void* given = reinterpret_cast<char*>(tensor.ptr()) + at;
        if (size == nullptr || size(given, &held) != 0 || offset(given, &needed) != 0) return false;
        needed = (needed + span) * element_bytes;
        return held < needed;
    }
};

struct Torch {
    const dlpack::Exchange* exchange = nullptr;
    nb::object tensor, parameter, empty_like, uint8, float64;
    nb::object contiguous, copy, is_neg, zero;       // methods of torch.Tensor, as functions
    nb::object increment_versions, is_recomputation, is_zerotensor, count_modes;  // of kernels/core.py
    Storages storages;

    // names: an object whose attributes are those above, and `exchange`, the capsule of torch's table.
    explicit Torch(nb::handle names) {
        nb::object capsule = names.attr("exchange");
        exchange = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (exchange == nullptr) nb::raise_python_error();
        if (exchange->header.version.major != 1)
            raise(PyExc_RuntimeError, "torch speaks version " + std::to_string(exchange->header.version.major) +
                                          " of DLPack's exchange table, the core version 1");
        if (exchange->allocate == nullptr || exchange->managed_to_object == nullptr ||
            exchange->tensor_from_object == nullptr)
            raise(PyExc_RuntimeError, "torch's table of DLPack functions has gaps");
        tensor = names.attr("tensor");
        parameter = names.attr("parameter");
        empty_like = names.attr("empty_like");
        uint8 = names.attr("uint8");
        float64 = names.attr("float64");
        increment_versions = names.attr("increment_versions");
        is_recomputation = names.attr("is_recomputation");
        is_zerotensor = names.attr("is_zerotensor");
        count_modes = names.attr("count_modes");
        storages = Storages(names.attr("storages"));
        contiguous = tensor.attr("contiguous");
        copy = tensor.attr("copy_");
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
