// Layer and RMS norm on tensors: statistics per row, parameters per element of a row.
#pragma once
#include "edge.h"
#include "kernels_in_use.h"

namespace normkit {

struct LayerOutput {
    Tensor y, stats, sum;  // stats may be nothing; the sum where there is a residual, row-major
};

struct LayerGradients {
    Tensor input, weight, bias;  // nothing where not needed
};

// Rows of `width` elements, checked: x as it came and row-major.
struct LayerOperands {
    Tensor given, x, weight, bias, residual;
    int64_t width, rows = 0;
    bool rms;

    LayerOperands(const Edge& edge, const Tensor& x_, int64_t width_, bool rms_, nb::handle weight_, nb::handle bias_,
                  nb::handle residual_ = nb::handle(Py_None))
        : given(x_), width(width_), rms(rms_) {
        if (!given || width < 0 || (width == 0 ? given.elements() != 0 : given.elements() % width != 0))
            edge.refuse(PyExc_RuntimeError, "input", " must have rows of " + std::to_string(width) + " elements");
        if (width > 0) rows = given.elements() / width;
        x = given.contiguous();
        weight = edge.vector(weight_, width, "weight");
        bias = edge.vector(bias_, width, "bias");
        residual = edge.like(residual_, x, "residual");
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
    Tensor no_gradient(const Tensor& dy, const Tensor& dsum) const {
        const nb::object a = x.object(), b = dy.object(), none = (a - a) * (b - b);
        return Tensor::made(dsum ? none + dsum.object() : none);
    }
};

inline LayerOutput layer_forward(const LayerOperands& of, double eps, bool save, bool as_bytes = false) {
    LayerOutput made{Tensor::empty_like(of.x), {}, {}};
    auto& [y, stats, sum] = made;
    if (of.residual) sum = Tensor::empty_like(of.x);
    if (save) stats = Tensor::statistics(of.rows, 1, as_bytes);
    if (of.rows) {
        LayerForward a;
        of.describe(a);
        a.residual = of.residual.data();
        a.sum = sum.data();
        a.y = y.data();
        a.bias = of.bias.param();
        a.stats = stats.data<double>();
        a.eps = eps;
        without_gil(of.x.bytes(), [&] { kernels->layer_forward(a, parallel); });
    }
    y = of.in_layout(y);
    return made;
}

// dy, dsum: row-major, as x; dsum, added to the input's gradient, may be nothing.
inline LayerGradients layer_backward(const LayerOperands& of, const Tensor& dy, const Tensor& dsum, const Tensor& stats,
                                     bool need_input, bool need_weight, bool need_bias) {
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
        a.dsum = dsum.data();
        a.stats = stats.data<const double>();
        a.dx = dx.data();
        a.dweight = dweight.mutable_param();
        a.dbias = dbias.mutable_param();
        without_gil(2 * of.x.bytes(), [&] { kernels->layer_backward(a, parallel); });
    }
    if (need_input) dx = constant ? of.no_gradient(dy, dsum) : of.in_layout(dx);
    return made;
}

}  // namespace normkit
