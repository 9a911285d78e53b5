// One look at all tensors of a call: are they as kernels take them? Any other call is looked at closely in Python, which
// says what is wrong. Raises nothing about tensors; edge.h checks what enters.
#pragma once
#include <cstdint>

#include "tensor.h"
#include "torch.h"
#include "view.h"

namespace normkit {

// Whether a vector of n values on the CPU stands ready, of `dtype` (any where negative) or float32 for a 16-bit one.
inline bool is_vector(Looks& looks, nb::handle handle, int64_t n, int dtype) {
    if (handle.is_none()) return true;
    const Tensor& vector = looks.look(handle);
    if (!vector || !vector.on_cpu() || vector.rank() != 1 || vector.size(0) != n || !vector.is_contiguous())
        return false;
    const int own = vector.dtype();
    if (own < 0) return false;
    if (dtype < 0 || own == dtype) return true;
    return own == kFloat32 && (dtype == kBFloat16 || dtype == kFloat16);
}

// Tensors with parameters per channel: plain, strided, on the CPU, of fitting sizes and dtypes, not empty; and enough
// values for each set of statistics: more than one, unless they are given. groups: 0 for the batch's channels.
inline bool channels_ready(Looks& looks, nb::handle input, nb::handle weight, nb::handle bias, nb::handle residual,
                           nb::handle mean, nb::handle var, int64_t groups, bool training) {
    const Tensor& x = looks.look(input);
    if (!x || !x.on_cpu() || x.dtype() < 0 || x.rank() < 2 || x.elements() == 0) return false;
    if (!residual.is_none()) {
        const Tensor& r = looks.look(residual);
        if (!r || !r.on_cpu() || r.dtype() != x.dtype() || !r.same_sizes(x)) return false;
    }
    const int64_t c = x.size(1), sets = groups ? x.size(0) * groups : c;
    if (groups < 0 || (groups && c % groups != 0) || (training && x.elements() == sets)) return false;
    return is_vector(looks, weight, c, x.dtype()) && is_vector(looks, bias, c, x.dtype()) &&
           is_vector(looks, mean, c, -1) && is_vector(looks, var, c, -1);
}

// The same for rows of `width` elements.
inline bool rows_ready(Looks& looks, nb::handle input, nb::handle weight, nb::handle bias, int64_t width) {
    const Tensor& x = looks.look(input);
    if (!x || !x.on_cpu() || x.dtype() < 0 || x.rank() < 1 || x.size(x.rank() - 1) != width) return false;
    return width > 0 && x.elements() > 0 && is_vector(looks, weight, width, x.dtype()) &&
           is_vector(looks, bias, width, x.dtype());
}

// Whether a residual that is added before the norm lies as the input does, both row-major.
inline bool added_ready(Looks& looks, nb::handle input, nb::handle residual) {
    const Tensor &x = looks.look(input), &r = looks.look(residual);
    return r && r.on_cpu() && r.dtype() == x.dtype() && r.same_sizes(x) && x.is_contiguous() && r.is_contiguous();
}

// Whether a gradient is plain and has memory, with no torch-dispatch mode around it: what else it may be (a subclass, a
// batch of gradients, sparse, under a mode that has fake tensors) torch's operations have to take.
inline bool plain_gradient(nb::handle dy) {
    return bool(Tensor::look(dy)) && PyLong_AsLong(owned(PyObject_CallNoArgs(torch()->count_modes.ptr())).ptr()) == 0;
}

}  // namespace normkit
