// Layer and RMS norm on tensors: statistics per row, parameters per element of a row.
#pragma once
#include "kernels_in_use.h"

namespace normkit {

struct LayerOutput {
    Tensor y, stats;  // stats may be nothing
};

struct LayerGradients {
    Tensor input, weight, bias;  // nothing where not needed
};

// Over rows of `width` elements.
inline LayerOutput layer_forward(nb::handle input, int64_t width, bool rms, nb::handle weight_, nb::handle bias_,
                                 double eps, bool save) {
    const Tensor x = Tensor(input).resolved().contiguous();
    const Tensor weight = Tensor(weight_).contiguous(), bias = Tensor(bias_).contiguous();
    LayerOutput made{Tensor::empty_like(x), {}};
    auto& [y, stats] = made;
    LayerForward a;
    a.width = width;
    a.rows = width ? x.elements() / width : 0;
    if (save) stats = Tensor::statistics(a.rows);
    if (a.rows) {
        a.dtype = x.dtype();
        a.rms = rms;
        a.x = x.data();
        a.y = y.data();
        a.weight = weight.param();
        a.bias = bias.param();
        a.stats = stats.data<double>();
        a.eps = eps;
        without_gil(x.bytes(), [&] { kernels->layer_forward(a, parallel); });
    }
    return made;
}

inline LayerGradients layer_backward(nb::handle dy_, nb::handle input, int64_t width, bool rms, nb::handle weight_,
                                     nb::handle bias_, nb::handle stats_, bool need_input, bool need_weight,
                                     bool need_bias) {
    const Tensor x = Tensor(input).resolved().contiguous(), dy = Tensor(dy_).resolved().like(x), stats(stats_);
    const Tensor weight = Tensor(weight_).contiguous(), bias(bias_);
    LayerGradients made;
    auto& [dx, dweight, dbias] = made;
    if (need_input) dx = Tensor::empty_like(x);
    if (need_weight && weight) dweight = Tensor::gradient_of(weight);
    if (need_bias && bias) dbias = Tensor::gradient_of(bias);
    LayerBackward a;
    a.width = width;
    a.rows = width ? x.elements() / width : 0;
    if (a.rows == 0) {
        dweight.zero();
        dbias.zero();
    } else {
        a.dtype = x.dtype();
        a.rms = rms;
        a.dy = dy.data();
        a.x = x.data();
        a.weight = weight.param();
        a.stats = stats.data<const double>();
        a.dx = dx.data();
        a.dweight = dweight.mutable_param();
        a.dbias = dbias.mutable_param();
        without_gil(2 * x.bytes(), [&] { kernels->layer_backward(a, parallel); });
    }
    return made;
}

}  // namespace normkit
