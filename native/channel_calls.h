// Norms with parameters per channel, on tensors: groups = 0: statistics per channel over the batch; groups > 0: per
// sample and group. Outputs are made here, because each step costs less than in Python.
//
// Where each sample has a weight and a bias of its own, each is a call of the kernels. Its statistics lie (3, groups) for
// one sample after the other; given ones are those of all.
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

// run(samples, samples before them, number, threads) for all samples, for each slice, or for each sample apart: then
// threads take whole samples where there are enough for all, or where one is work for one thread. By numbers of the
// shape alone.
template <class Run> void each_part(const ChannelOperands& of, const Slices& slices, const Run& run) {
    constexpr int64_t kApart = 32, kAlone = 128 * 1024;  // samples; bytes, which plan_samples leaves to one thread too
    const int64_t n = of.shape.n;
    if (!of.apart)
        return slices.each(
            n, [&](int64_t count, int64_t before, int64_t number) { run(count, before, number, parallel); });
    const bool alone = n >= kApart || of.x.bytes() / n <= kAlone;
    auto body = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) run(int64_t(1), i, i, alone ? Parallel() : parallel);
    };
    if (alone) parallel(n, of.x.bytes(), body);
    else body(0, n);
}

// The call of a part: what forward and backward both read, `before` samples further on.
template <class Call>
Call part_of(const ChannelOperands& of, const Call& all, int64_t samples, int64_t before, int64_t number) {
    const int64_t offset = before * (of.x.bytes() / all.shape.n);
    Call part = all;
    part.shape.n = samples;
    part.x = advance(all.x, offset);
    part.residual = advance(all.residual, offset);
    part.bits = advance(all.bits, before * (of.bit_bytes() / all.shape.n));
    part.weight = of.weight_of(all.weight, number);
    part.bias = of.weight_of(all.bias, number);
    return part;
}

// mean, var: given statistics (C,) or nothing. Slices have statistics of their own: (3 * slices, C).
inline ChannelOutput channel_forward(const ChannelOperands& of, const Tensor& mean, const Tensor& var, double eps,
                                     Keep keep, const Slices& slices = {}) {
    const Tensor& x = of.x;
    GroupForward a;
    of.describe(a);
    ChannelOutput made{Tensor::empty_like(x), {}, {}};
    auto& [y, stats, bits] = made;
    of.verify_parameters(bool(mean));
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
        if (of.groups > 0 && !of.apart) return kernels->group_forward(a, parallel);
        const int64_t sample = x.bytes() / a.shape.n;
        each_part(of, slices, [&](int64_t n, int64_t before, int64_t number, const Parallel& by) {
            GroupForward part = part_of(of, a, n, before, number);
            part.y = advance(a.y, before * sample);
            if (of.apart && of.groups == 0) part.stats = number == 0 ? a.stats : nullptr;  // all the same
            else if (a.stats != nullptr) part.stats = a.stats + 3 * of.sets_of_part() * number;
            if (of.groups > 0) kernels->group_forward(part, by);
            else kernels->channel_forward(part, by);
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
    of.verify_parameters(!training);
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
        if (of.groups > 0 && !of.apart) return kernels->group_backward(a, parallel);
        const int64_t sample = x.bytes() / a.shape.n, c = a.shape.c;
        // the parameters' gradients of slices are added up in double
        std::vector<double> sums(slices.several() ? size_t(4 * c) : 0);
        each_part(of, slices, [&](int64_t n, int64_t before, int64_t number, const Parallel& by) {
            GroupBackward part = part_of(of, a, n, before, number);
            part.dy = advance(a.dy, before * sample);
            if (!of.apart || of.groups > 0) part.stats = a.stats + 3 * of.sets_of_part() * number;
            part.dx = advance(a.dx, before * sample);
            part.dresidual = advance(a.dresidual, before * sample);
            part.dweight = of.weight_of(a.dweight, number);
            part.dbias = of.weight_of(a.dbias, number);
            if (slices.several()) {
                if (a.dweight.data != nullptr) part.dweight = {sums.data() + 2 * c, kFloat64};
                if (a.dbias.data != nullptr) part.dbias = {sums.data() + 3 * c, kFloat64};
            }
            if (of.groups > 0) kernels->group_backward(part, by);
            else kernels->channel_backward(part, by);
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
