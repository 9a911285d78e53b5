// What forward and backward of a norm with parameters per channel share: the operands, checked, and their layout.
#pragma once
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "edge.h"
#include "tensor.h"
#include "torch.h"
#include "view.h"

namespace normkit {

// The kernels' layouts: row-major or channels last; any other is copied.
inline Tensor dense(Tensor x) { return x.is_channels_last() ? std::move(x) : std::move(x).contiguous(); }

inline Shape shape_of(const Tensor& x) {
    Shape shape;
    shape.n = x.size(0);
    shape.c = x.size(1);
    shape.s = shape.n && shape.c ? x.elements() / (shape.n * shape.c) : 0;
    shape.channels_last = shape.s == 1 || !x.is_contiguous();
    return shape;
}

// (N, C, *), dense.
inline Tensor channels_of(const Edge& edge, nb::handle input) {
    Tensor x = edge.real(Edge::given(input, "input"), "input");
    if (x.rank() < 2) edge.refuse(PyExc_RuntimeError, "input", " must have at least 2 dimensions (N, C, *)");
    return dense(std::move(x));
}

template <class P> P* advance(P* data, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
    return data == nullptr ? nullptr : reinterpret_cast<P*>(reinterpret_cast<Byte*>(data) + bytes);
}

inline int64_t bytes_of(int dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

inline ActivationSpec activation_of(nb::handle code_, nb::handle param) {
    const int64_t code = whole(code_, "code");
    if (code < kIdentity || code > kMish) raise(PyExc_ValueError, "no activation has the code " + std::to_string(code));
    return {int(code), number(param, "param")};
}

struct ChannelOperands {
    Tensor x, residual, weight, bias;
    Shape shape;
    int64_t groups;      // 0: statistics per channel over the batch
    bool apart = false;  // weight and bias are (N, C), a modulation's: each sample has its own
    ActivationSpec activation;

    // x: dense.
    ChannelOperands(const Edge& edge, Tensor x_, nb::handle residual_, nb::handle weight_, nb::handle bias_,
                    int64_t groups_, ActivationSpec activation_)
        : x(std::move(x_)), shape(shape_of(x)), groups(groups_), activation(activation_) {
        if (groups < 0 || groups > INT32_MAX || (groups > 0 && shape.c % groups != 0))
            edge.refuse(PyExc_ValueError, "groups",
                        " (" + std::to_string(groups) + ") must divide the number of channels (" +
                            std::to_string(shape.c) + "), or be 0");
        residual = edge.like(residual_, x, "residual");
        weight = edge.any(weight_, "weight");
        bias = edge.any(bias_, "bias");
        apart = is_apart(weight) || is_apart(bias);
        weight = edge.vector(std::move(weight), parameters(), "weight");
        bias = edge.vector(std::move(bias), parameters(), "bias");
    }

    bool is_apart(const Tensor& parameter) const {
        return parameter && parameter.rank() == 2 && shape.n > 1 && parameter.size(0) == shape.n &&
               parameter.size(1) == shape.c;
    }
    // How many values weight and bias have.
    int64_t parameters() const { return apart ? shape.n * shape.c : shape.c; }
    // A parameter, or its gradient, as sample `i` has it.
    template <class P> P weight_of(P parameter, int64_t i) const {
        if (apart) parameter.data = advance(parameter.data, i * shape.c * bytes_of(parameter.dtype));
        return parameter;
    }
    void verify_parameters(bool given) const {
        if (apart && groups == 0 && !given)
            Edge().refuse(PyExc_ValueError, "weight",
                          " may be (N, C) beside statistics that are given, or of groups of a sample");
    }

    // How many sets of statistics a slice of the batch has, and how many a call of the kernels.
    int64_t sets() const { return groups > 0 ? shape.n * groups : shape.c; }
    int64_t sets_of_part() const { return groups > 0 && apart ? groups : sets(); }
    // A piecewise linear activation's sign after a residual is kept as one bit per element.
    bool keeps_bits() const {
        return activation.code == kRelu || activation.code == kLeakyRelu || activation.code == kRelu6;
    }
    // Each memory row of x starts a new byte.
    int64_t bit_bytes() const {
        return (shape.channels_last ? shape.n * shape.s : shape.n * shape.c) * shape.bit_row();
    }
    Tensor bits(const Edge& edge, nb::handle given) const {
        if (!given.is_none() && !keeps_bits())
            edge.refuse(PyExc_ValueError, "bits", " belong to relu, leaky_relu and relu6 alone");
        return edge.bytes(given, bit_bytes(), "bits");
    }

    template <class Call> void describe(Call& call) const {
        call.shape = shape;
        call.dtype = x.dtype();
        call.x = x.data();
        call.residual = residual.data();
        call.weight = weight.param();
        call.bias = bias.param();
        call.activation = activation;
        call.groups = groups;
    }
};

// How many samples each slice of the batch has, where slices have statistics of their own; none: one slice.
class Slices {
  public:
    Slices() = default;
    Slices(const Edge& edge, std::vector<int64_t> sizes, const ChannelOperands& of) : sizes_(std::move(sizes)) {
        const int64_t samples = of.shape.n;
        int64_t sum = 0;
        for (int64_t size : sizes_) sum += size > 0 && size <= samples - sum ? size : samples + 1 - sum;
        if (!sizes_.empty() && (sum != samples || of.groups > 0 || of.apart))
            edge.refuse(PyExc_ValueError, "sizes",
                        " must be positive and sum up to the " + std::to_string(samples) +
                            " samples of the batch, of a norm without groups and with one weight for all samples");
    }

    int64_t count() const { return sizes_.empty() ? 1 : int64_t(sizes_.size()); }
    bool several() const { return !sizes_.empty(); }

    // Calls body(samples of the slice, samples before it, its number).
    template <class Body> void each(int64_t samples, Body&& body) const {
        if (!several()) return body(samples, int64_t(0), int64_t(0));
        int64_t before = 0, number = 0;
        for (int64_t size : sizes_) {
            body(size, before, number++);
            before += size;
        }
    }

  private:
    std::vector<int64_t> sizes_;
};

}  // namespace normkit
