// Layer and RMS norm on tensors: statistics per row, parameters per element of a row.
#pragma once
#include "edge.h"
#include "kernels_in_use.h"

namespace normkit {

struct LayerOutput {
    Tensor y, stats;  // stats may be nothing
};

struct LayerGradients {
    Tensor input, weight, bias;  // nothing where not needed
};

// Rows of `width` elements, checked: x as it came and row-major.
struct LayerOperands {
    Tensor given, x, weight, bias;
    int64_t width, rows = 0;
    bool rms;

    LayerOperands(const Edge& edge, const Tensor& x_, int64_t width_, bool rms_, nb::handle weight_, nb::handle bias_)
        : given(x_), width(width_), rms(rms_) {
        if (!given || width < 0 || (width == 0 ? given.elements() != 0 : given.elements() % width != 0))
            edge.refuse(PyExc_RuntimeError, "input", " must have rows of " + std::to_string(width) + " elements");
        if (width > 0) rows = given.elements() / width;
        x = given.contiguous();
        weight = edge.vector(weight_, width, "weight");
        bias = edge.vector(bias_, width, "bias");
    }

    template <class Call> void describe(Call& call) const {
        call.dtype = x.dtype();
        call.width = width;
        call.rows = rows;
        call.rms = rms;
        call.x = x.data();
        call.weight = weight.param();
    }

    // RMS norm keeps the input's memory format, as torch's operations do; layer norm is row-major, as torch's is.
    Tensor in_layout(const Tensor& row_major) const {
        if (!rms || given.is_contiguous()) return row_major;
        const Tensor like_input = Tensor::empty_like(given);
        if (like_input.is_contiguous()) return row_major;
        like_input.fill(row_major);
        return like_input;
    }

    // The derivative where each value is its own mean: 0, and NaN where an operand is not finite.
    Tensor no_gradient(const Tensor& dy) const {
        const nb::object a = x.object(), b = dy.object();
        return Tensor::made((a - a) * (b - b));
    }
};

inline LayerOutput layer_forward(const LayerOperands& of, double eps, bool save, bool as_bytes = false) {
    LayerOutput made{Tensor::empty_like(of.x), {}};
    auto& [y, stats] = made;
    if (save) stats = Tensor::statistics(of.rows, 1, as_bytes);
    if (of.rows) {
        LayerForward a;
        of.describe(a);
        a.y = y.data();
        a.bias = of.bias.param();
        a.stats = stats.data<double>();
        a.eps = eps;
        without_gil(of.x.bytes(), [&] { kernels->layer_forward(a, parallel); });
    }
    y = of.in_layout(y);
    return made;
}

// dy: row-major, as x.
inline LayerGradients layer_backward(const LayerOperands& of, const Tensor& dy, const Tensor& stats, bool need_input,
                                     bool need_weight, bool need_bias) {
    LayerGradients made;
    auto& [dx, dweight, dbias] = made;
    const bool constant = !of.rms && of.width == 1;
    if (need_input && !constant) dx = Tensor::empty_like(of.x);
    if (need_weight && of.weight) dweight = Tensor::gradient_of(of.weight);
    if (need_bias && of.bias) dbias = Tensor::gradient_of(of.bias);
    if (of.rows == 0) {
        dweight.zero();
        dbias.zero();
    } else {
        LayerBackward a;
        of.describe(a);
        a.dy = dy.data();
        a.stats = stats.data<const double>();
        a.dx = dx.data();
        a.dweight = dweight.mutable_param();
        a.dbias = dbias.mutable_param();
        without_gil(2 * of.x.bytes(), [&] { kernels->layer_backward(a, parallel); });
    }
    if (need_input) dx = constant ? of.no_gradient(dy) : of.in_layout(dx);
    return made;
}

}  // namespace normkit
