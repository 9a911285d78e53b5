// Norms with parameters per channel, on tensors: groups = 0: statistics per channel over the batch; groups > 0: per sample
// and group. Outputs are made here, because each step costs less than in Python; what the arguments mean was checked there.
#pragma once
#include <nanobind/stl/vector.h>

#include <vector>

#include "kernels_in_use.h"
#include "running.h"

namespace normkit {

inline Tensor dense(Tensor given) {
    const Tensor x = given.resolved();
    if (x.dtype() < 0) nb::raise_type_error("the native kernels know float32, float64, bfloat16 and float16 only");
    return x.is_contiguous() || x.is_channels_last() ? x : x.contiguous();
}

inline Shape shape_of(const Tensor& x) {
    Shape shape;
    shape.n = x.size(0);
    shape.c = x.size(1);
    shape.s = shape.n * shape.c ? x.elements() / (shape.n * shape.c) : 0;
    shape.channels_last = shape.s == 1 || !x.is_contiguous();
    return shape;
}

// Calls body(samples of the slice, samples before it, its number) for each slice of a batch; one slice where none are given.
template <class Body> void for_slices(const std::vector<int64_t>& sizes, int64_t n, Body&& body) {
    if (sizes.empty()) return body(n, int64_t(0), int64_t(0));
    int64_t before = 0, number = 0;
    for (int64_t size : sizes) {
        body(size, before, number++);
        before += size;
    }
}

template <class P> P* advance(P* data, int64_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
    return data == nullptr ? nullptr : reinterpret_cast<P*>(reinterpret_cast<Byte*>(data) + bytes);
}

inline bool keeps_bits(int code) { return code == kRelu || code == kLeakyRelu || code == kRelu6; }

inline int64_t bit_bytes(const Shape& s) { return (s.channels_last ? s.n * s.s : s.n * s.c) * s.bit_row(); }

struct ChannelOutput {
    Tensor y, stats, bits;  // the last two may be nothing
};

struct ChannelGradients {
    Tensor input, weight, bias, residual;  // nothing where not needed
};

// mean, var: given statistics or None. save: keep what the backward needs. sizes: how many samples each slice of the batch
// has, where slices have statistics of their own: stats is (3 * slices, C) then.
inline ChannelOutput channel_forward(nb::handle input, nb::handle residual_, nb::handle weight_, nb::handle bias_,
                                     nb::handle mean_, nb::handle var_, int64_t groups, double eps, int code,
                                     double activation_param, bool save, const std::vector<int64_t>& sizes = {}) {
    const Tensor x = dense(Tensor(input)), residual = Tensor(residual_).resolved().like(x);
    const Tensor weight = Tensor(weight_).contiguous(), bias = Tensor(bias_).contiguous();
    const Tensor mean = Tensor(mean_).contiguous(), var = Tensor(var_).contiguous();
    GroupForward a;
    a.shape = shape_of(x);
    ChannelOutput made{Tensor::empty_like(x), {}, {}};
    auto& [y, stats, bits] = made;
    if (save || (groups == 0 && !mean))
        stats = Tensor::statistics(groups > 0 ? a.shape.n * groups : a.shape.c, std::max<int64_t>(1, int64_t(sizes.size())));
    if (save && residual && keeps_bits(code)) bits = Tensor::byte_vector(bit_bytes(a.shape));
    if (a.shape.elements() == 0) {
        stats.zero();
    } else {
        a.groups = groups;
        a.dtype = x.dtype();
        a.x = x.data();
        a.residual = residual.data();
        a.y = y.data();
        a.bits = bits.data<uint8_t>();
        a.weight = weight.param();
        a.bias = bias.param();
        a.mean = mean.param();
        a.var = var.param();
        a.stats = stats.data<double>();
        a.eps = eps;
        a.activation = {code, activation_param};
        without_gil(x.bytes(), [&] {
            if (groups > 0) return kernels->group_forward(a, parallel);
            const int64_t sample = x.bytes() / a.shape.n, bit_sample = bit_bytes(a.shape) / a.shape.n;
            for_slices(sizes, a.shape.n, [&](int64_t n, int64_t before, int64_t number) {
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
    }
    return made;
}

// The batch's statistics (3, C) alone; the third row is 1 / sqrt(var).
inline nb::object channel_statistics(nb::handle input) {
    const Tensor x = dense(Tensor(input));
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
    return stats.object();
}

// count: how many values are behind the statistics where not all are, else 0.
inline ChannelGradients channel_backward(nb::handle dy_, nb::handle input, nb::handle residual_, nb::handle bits,
                                         nb::handle weight_, nb::handle bias_, nb::handle stats, int64_t groups,
                                         bool training, int code, double activation_param, bool need_input,
                                         bool need_weight, bool need_bias, bool need_residual,
                                         const std::vector<int64_t>& sizes = {}, int64_t count = 0) {
    const Tensor x = dense(Tensor(input)), dy = Tensor(dy_).resolved().like(x);
    const Tensor residual = Tensor(residual_).resolved().like(x);
    const Tensor weight = Tensor(weight_).contiguous(), bias = Tensor(bias_).contiguous();
    const Tensor sign(bits), statistics(stats);
    ChannelGradients made;
    auto& [dx, dweight, dbias, dresidual] = made;
    if (need_input) dx = Tensor::empty_like(x);
    if (need_weight && weight) dweight = Tensor::gradient_of(weight);
    if (need_bias && bias) dbias = Tensor::gradient_of(bias);
    if (need_residual && code != kIdentity) dresidual = Tensor::empty_like(x);
    GroupBackward a;
    a.shape = shape_of(x);
    if (a.shape.elements() == 0) {
        dweight.zero();
        dbias.zero();
    } else {
        a.groups = groups;
        a.dtype = x.dtype();
        a.dy = dy.data();
        a.x = x.data();
        a.residual = residual.data();
        a.bits = sign.data<const uint8_t>();
        a.weight = weight.param();
        a.bias = bias.param();
        a.stats = statistics.data<const double>();
        a.dx = dx.data();
        a.dresidual = dresidual.data();
        a.dweight = dweight.mutable_param();
        a.dbias = dbias.mutable_param();
        a.training = training;
        a.count = count;
        a.activation = {code, activation_param};
        without_gil(2 * x.bytes(), [&] {
            if (groups > 0) return kernels->group_backward(a, parallel);
            const int64_t sample = x.bytes() / a.shape.n, bit_sample = bit_bytes(a.shape) / a.shape.n, c = a.shape.c;
            // the parameters' gradients of slices are added up in double
            std::vector<double> sums(sizes.empty() ? 0 : size_t(4 * c));
            for_slices(sizes, a.shape.n, [&](int64_t n, int64_t before, int64_t number) {
                ChannelBackward slice = a;
                slice.shape.n = n;
                slice.dy = advance(a.dy, before * sample);
                slice.x = advance(a.x, before * sample);
                slice.residual = advance(a.residual, before * sample);
                slice.bits = advance(a.bits, before * bit_sample);
                slice.stats = a.stats + 3 * c * number;
                slice.dx = advance(a.dx, before * sample);
                slice.dresidual = advance(a.dresidual, before * sample);
                if (!sums.empty()) {
                    if (a.dweight.data != nullptr) slice.dweight = {sums.data() + 2 * c, kFloat64};
                    if (a.dbias.data != nullptr) slice.dbias = {sums.data() + 3 * c, kFloat64};
                }
                kernels->channel_backward(slice, parallel);
                if (!sums.empty())
                    for (int64_t i = 0; i < 2 * c; ++i) sums[size_t(i)] += sums[size_t(2 * c + i)];
            });
            if (!sums.empty())
                for (int64_t i = 0; i < c; ++i) {
                    a.dweight.put(i, sums[size_t(i)]);
                    a.dbias.put(i, sums[size_t(c + i)]);
                }
        });
    }
    if (need_residual && code == kIdentity) dresidual = dy;
    return made;
}

// Moves running statistics in place and counts the batch: True; False where a new value is not finite and nothing was
// written; None for buffers that only torch's operations can move. momentum None: the cumulative average.
inline std::optional<bool> move_running_statistics(nb::handle stats, int64_t count, nb::handle mean_, nb::handle var_,
                                                   nb::handle batches_, std::optional<double> momentum) {
    const Tensor mean(mean_), var(var_), batches(batches_);
    const int dtype = mean.dtype();
    if ((dtype != kFloat32 && dtype != kFloat64) || var.dtype() != dtype || !mean.on_cpu() || !var.on_cpu()) return {};
    if (!mean.is_contiguous() || !var.is_contiguous()) return {};
    if (batches) {
        const dlpack::DataType type = batches.view().dtype;
        if (!batches.on_cpu() || batches.elements() != 1 || type.code != dlpack::kInt || type.bits != 64) return {};
    } else if (!momentum) {
        return {};
    }
    int64_t* counted = batches.data<int64_t>();
    const double factor = momentum ? *momentum : 1.0 / double(*counted + 1);
    const double unbias = double(count) / double(count - 1);
    const Tensor found(stats);
    const double* s = found.data<const double>();
    const bool moved = dtype == kFloat64
        ? move_running(s, mean.elements(), unbias, mean.data<double>(), var.data<double>(), factor)
        : move_running(s, mean.elements(), unbias, mean.data<float>(), var.data<float>(), factor);
    if (!moved) return false;
    if (counted) *counted += 1;
    torch()->increment_version(batches ? nb::make_tuple(mean.object(), var.object(), batches.object())
                                       : nb::make_tuple(mean.object(), var.object()));
    return true;
}

}  // namespace normkit
