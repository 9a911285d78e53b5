// Norms with parameters per channel, on tensors: groups = 0: statistics per channel over the batch; groups > 0: per
// sample and group. Outputs are made here, because each step costs less than in Python.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "channel_operands.h"
#include "kernels_in_use.h"
#include "tensor.h"
#include "view.h"

namespace normkit {

struct ChannelOutput {
    Tensor y, stats, bits;  // the last two may be nothing
};

struct ChannelGradients {
    Tensor input, weight, bias, residual;  // nothing where not needed
};

// What of a forward outlives it.
struct Keep {
    bool stats = false, bits = false;
    bool as_bytes = false;  // the statistics as bytes, which autograd saves (Edge::bytes says why)
};

// mean, var: given statistics (C,) or nothing. Slices have statistics of their own: (3 * slices, C).
inline ChannelOutput channel_forward(const ChannelOperands& of, const Tensor& mean, const Tensor& var, double eps,
                                     Keep keep, const Slices& slices = {}) {
    const Tensor& x = of.x;
    GroupForward a;
    of.describe(a);
    ChannelOutput made{Tensor::empty_like(x), {}, {}};
    auto& [y, stats, bits] = made;
    if (keep.stats || (of.groups == 0 && !mean)) stats = Tensor::statistics(of.sets(), slices.count(), keep.as_bytes);
    if (keep.bits && of.residual && of.keeps_bits()) bits = Tensor::byte_vector(of.bit_bytes());
    if (a.shape.elements() == 0) {
        stats.zero();
        return made;
    }
    a.y = y.data();
    a.bits = bits.data<uint8_t>();
    a.mean = mean.param();
    a.var = var.param();
    a.stats = stats.data<double>();
    a.eps = eps;
    without_gil(x.bytes(), [&] {
        if (of.groups > 0) return kernels->group_forward(a, parallel);
        const int64_t sample = x.bytes() / a.shape.n, bit_sample = of.bit_bytes() / a.shape.n;
        slices.each(a.shape.n, [&](int64_t n, int64_t before, int64_t number) {
            ChannelForward slice = a;
            slice.shape.n = n;
            slice.x = advance(a.x, before * sample);
            slice.residual = advance(a.residual, before * sample);
            slice.y = advance(a.y, before * sample);
            slice.bits = advance(a.bits, before * bit_sample);
            if (a.stats != nullptr) slice.stats = a.stats + 3 * a.shape.c * number;
            kernels->channel_forward(slice, parallel);
        });
    });
    return made;
}

// The batch's statistics (3, C) alone; the third row is 1 / sqrt(var). x: dense.
inline Tensor channel_statistics(const Tensor& x) {
    ChannelForward a;
    a.shape = shape_of(x);
    const Tensor stats = Tensor::statistics(a.shape.c);
    if (a.shape.elements() == 0) {
        stats.zero();
    } else {
        a.dtype = x.dtype();
        a.x = x.data();
        a.stats = stats.data<double>();
        without_gil(x.bytes(), [&] { kernels->channel_forward(a, parallel); });
    }
    return stats;
}

// Whose gradients are wanted.
struct Needs {
    bool input, weight, bias, residual;
};

// dy: as x. bits: of the forward, or nothing. stats: of the forward. training: false where they are constants. count:
// of how many values the statistics are, where not of all, else 0.
inline ChannelGradients channel_backward(const ChannelOperands& of, const Tensor& dy, const Tensor& bits,
                                         const Tensor& stats, bool training, Needs needs, const Slices& slices = {},
                                         int64_t count = 0) {
    const Tensor& x = of.x;
    const bool passes = of.activation.code == kIdentity;  // dy is the residual's gradient
    ChannelGradients made;
    auto& [dx, dweight, dbias, dresidual] = made;
    if (needs.input) dx = Tensor::empty_like(x);
    if (needs.weight && of.weight) dweight = Tensor::gradient_of(of.weight);
    if (needs.bias && of.bias) dbias = Tensor::gradient_of(of.bias);
    if (needs.residual) dresidual = passes ? dy : Tensor::empty_like(x);
    GroupBackward a;
    of.describe(a);
    if (a.shape.elements() == 0) {
        dweight.zero();
        dbias.zero();
        return made;
    }
    a.dy = dy.data();
    a.bits = bits.data<const uint8_t>();
    a.stats = stats.data<const double>();
    a.dx = dx.data();
    a.dresidual = passes ? nullptr : dresidual.data();
    a.dweight = dweight.mutable_param();
    a.dbias = dbias.mutable_param();
    a.training = training;
    a.count = count;
    without_gil(2 * x.bytes(), [&] {
        if (of.groups > 0) return kernels->group_backward(a, parallel);
        const int64_t sample = x.bytes() / a.shape.n, bit_sample = of.bit_bytes() / a.shape.n, c = a.shape.c;
        // the parameters' gradients of slices are added up in double
        std::vector<double> sums(slices.several() ? size_t(4 * c) : 0);
        slices.each(a.shape.n, [&](int64_t n, int64_t before, int64_t number) {
            ChannelBackward slice = a;
            slice.shape.n = n;
            slice.dy = advance(a.dy, before * sample);
            slice.x = advance(a.x, before * sample);
            slice.residual = advance(a.residual, before * sample);
            slice.bits = advance(a.bits, before * bit_sample);
            slice.stats = a.stats + 3 * c * number;
            slice.dx = advance(a.dx, before * sample);
            slice.dresidual = advance(a.dresidual, before * sample);
            if (slices.several()) {
                if (a.dweight.data != nullptr) slice.dweight = {sums.data() + 2 * c, kFloat64};
                if (a.dbias.data != nullptr) slice.dbias = {sums.data() + 3 * c, kFloat64};
            }
            kernels->channel_backward(slice, parallel);
            if (slices.several())
                for (int64_t i = 0; i < 2 * c; ++i) sums[size_t(i)] += sums[size_t(2 * c + i)];
        });
        if (slices.several())
            for (int64_t i = 0; i < c; ++i) {
                a.dweight.put(i, sums[size_t(i)]);
                a.dbias.put(i, sums[size_t(c + i)]);
            }
    });
    return made;
}

}  // namespace normkit
