// One look at all tensors of a call: are they as the kernels take them?
#pragma once
#include "tensor.h"

namespace normkit {

inline bool is_plain(nb::handle tensor) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    return type == torch()->tensor.ptr() || type == torch()->parameter.ptr();
}

// Whether a vector of n values on the CPU stands ready, of `dtype` (any where negative) or float32 beside half precision.
inline bool is_vector(nb::handle handle, int64_t n, int dtype) {
    if (handle.is_none()) return true;
    if (!is_plain(handle)) return false;
    const Tensor vector(handle);
    if (!vector.on_cpu() || vector.rank() != 1 || vector.size(0) != n || !vector.is_contiguous()) return false;
    const int own = vector.dtype();
    if (own == dtype || (dtype < 0 && own >= 0)) return true;
    return own == kFloat32 && (dtype == kBFloat16 || dtype == kFloat16);
}

// How many values each channel of a call has whose tensors are all as the kernels take them: plain, strided, on the CPU,
// of fitting sizes and dtypes. 0 for any other: the caller then looks closer and says what is wrong.
inline int64_t channel_ready(nb::handle input, nb::handle residual, nb::handle weight, nb::handle bias, nb::handle mean,
                             nb::handle var) {
    if (!is_plain(input)) return 0;
    try {
        const Tensor x(input);
        if (!x.on_cpu() || x.dtype() < 0 || x.rank() < 2 || x.elements() == 0) return 0;
        if (!residual.is_none()) {
            if (!is_plain(residual)) return 0;
            const Tensor r(residual);
            if (!r.on_cpu() || r.dtype() != x.dtype() || !r.same_sizes(x)) return 0;
        }
        const int64_t c = x.size(1);
        if (!is_vector(weight, c, x.dtype()) || !is_vector(bias, c, x.dtype())) return 0;
        if (!is_vector(mean, c, -1) || !is_vector(var, c, -1)) return 0;
        return x.elements() / c;
    } catch (nb::python_error&) {  // no strided memory
        return 0;
    }
}

// The same for rows of `width` elements: how many rows.
inline int64_t rows_ready(nb::handle input, int64_t width, nb::handle weight, nb::handle bias) {
    if (!is_plain(input)) return 0;
    try {
        const Tensor x(input);
        if (!x.on_cpu() || x.dtype() < 0 || x.rank() < 1 || x.size(x.rank() - 1) != width) return 0;
        if (!is_vector(weight, width, x.dtype()) || !is_vector(bias, width, x.dtype())) return 0;
        return width ? x.elements() / width : 0;
    } catch (nb::python_error&) {
        return 0;
    }
}

}  // namespace normkit
