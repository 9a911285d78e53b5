// Norms with a scale and a shift for each element after them, on tensors: row-major ones.
#pragma once
#include <cstdint>
#include <string>

#include "arguments.h"
#include "autograd.h"
#include "edge.h"
#include "element_view.h"
#include "kernels_in_use.h"
#include "tensor.h"
#include "torch.h"

namespace normkit {

struct ElementOutput {
    Tensor z, stats;  // stats may be nothing
};

struct ElementGradients {
    Tensor input, weight, bias, scale;  // nothing where not needed
};

struct ElementNeeds {
    bool input, weight, bias, scale;
};

// kind: as Kind (autograd.h) has it; kBatch: by statistics that are given, each plane for itself; kGroups: `size` groups;
// kLayer, kRms: rows of `size` elements.
struct ElementOperands {
    Tensor x, weight, bias, scale;
    int64_t sets = 0, period = 1, segments = 1, length = 0;
    Kind kind;

    ElementOperands(const Edge& edge, nb::handle input, nb::handle weight_, nb::handle bias_, nb::handle scale_,
                    nb::handle kind_, nb::handle size_)
        : x(edge.real(Edge::given(input, "input"), "input").contiguous()), kind(kind_of(whole(kind_, "kind"))) {
        const int64_t size = whole(size_, "size"), elements = x.elements();
        if (rows()) {
            if (size < 1 || elements == 0 || elements % size != 0)
                edge.refuse(PyExc_RuntimeError, "input", " must have rows of " + std::to_string(size) + " elements");
            sets = elements / size;
            length = size;
        } else {
            const int64_t n = x.rank() < 2 ? 0 : x.size(0), c = x.rank() < 2 ? 0 : x.size(1);
            period = kind == kBatch ? c : size;
            if (elements == 0 || period < 1 || c % period != 0)
                edge.refuse(PyExc_RuntimeError, "input",
                            " must be (N, C, *) with values and " + std::to_string(period) + " groups of channels");
            sets = n * period;
            segments = c / period;
            length = elements / (n * c);
        }
        const int64_t parameters = rows() ? length : period * segments;
        weight = edge.vector(weight_, parameters, "weight");
        bias = edge.vector(bias_, parameters, "bias");
        scale = edge.like(Edge::given(scale_, "scale"), x, "scale");
    }

    bool rows() const { return kind >= kLayer; }

    void describe(ElementCall& call) const {
        call.dtype = x.dtype();
        call.sets = sets;
        call.period = period;
        call.segments = segments;
        call.length = length;
        call.rows = rows();
        call.rms = kind == kRms;
        call.x = x.data();
        call.scale = scale.data();
        call.weight = weight.param();
        call.bias = bias.param();
    }
};

// mean, var: given statistics of the channels, where the kind is kBatch.
inline ElementOutput element_forward(const ElementOperands& of, const Tensor& shift, const Tensor& mean,
                                     const Tensor& var, double eps, bool save) {
    if ((of.kind == kBatch) != bool(mean) || bool(mean) != bool(var))
        Edge().refuse(PyExc_ValueError, "mean", " and var belong to statistics that are given, of kind 0");
    ElementOutput made{Tensor::empty_like(of.x), {}};
    if (save) made.stats = Tensor::statistics(of.sets);
    ElementForward a;
    of.describe(a);
    a.shift = shift.data();
    a.z = made.z.data();
    a.mean = mean.param();
    a.var = var.param();
    a.stats = made.stats.data<double>();
    a.eps = eps;
    without_gil(3 * of.x.bytes(), [&] { kernels->element_forward(a, parallel); });
    return made;
}

// training: false where the statistics are constants.
inline ElementGradients element_backward(const ElementOperands& of, const Tensor& dz, const Tensor& stats,
                                         bool training, ElementNeeds needs) {
    ElementGradients made;
    if (needs.input) made.input = Tensor::empty_like(of.x);
    if (needs.scale) made.scale = Tensor::empty_like(of.x);
    if (needs.weight && of.weight) made.weight = Tensor::gradient_of(of.weight);
    if (needs.bias && of.bias) made.bias = Tensor::gradient_of(of.bias);
    ElementBackward a;
    of.describe(a);
    a.dz = dz.data();
    a.stats = stats.data<const double>();
    a.dx = made.input.data();
    a.dscale = made.scale.data();
    a.dweight = made.weight.mutable_param();
    a.dbias = made.bias.mutable_param();
    a.training = training;
    without_gil(3 * of.x.bytes(), [&] { kernels->element_backward(a, parallel); });
    return made;
}

}  // namespace normkit
