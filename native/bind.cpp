// Python's door: tensors and plain numbers in, new tensors out. With tensor.h the only file that includes Python headers.
//
// groups = 0: statistics per channel over the batch; groups > 0: per sample and group.
// Outputs are made here, because each step costs less than in Python; what the arguments mean was checked there
// (src/normkit/kernels/native.py is the only caller). The GIL is released while a kernel runs on more than a little.
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <optional>
#include <vector>

#include "dispatch.h"
#include "running.h"
#include "tensor.h"

using namespace normkit;

namespace {

constexpr int kInterface = 4;  // goes up with any change of these functions; native.py holds the same number

const Kernels* kernels = nullptr;
std::string problem;
Parallel parallel;

void choose() {
    const char* asked = std::getenv("NORMKIT_ISA");
    const char* why = nullptr;
    kernels = choose_kernels(asked, &why);
    if (kernels == nullptr) {
        problem = std::string("NORMKIT_ISA=") + asked + ": " + why;
        kernels = choose_kernels(nullptr, &why);
    }
}

// Runs a kernel, without the GIL where that pays.
template <class Call> void without_gil(int64_t bytes, Call&& call) {
    if (bytes <= kSerialBytes) return call();
    nb::gil_scoped_release release;
    call();
}

Tensor dense(Tensor x) {
    if (x.dtype() < 0) nb::raise_type_error("the native kernels know float32, float64, bfloat16 and float16 only");
    return x.is_contiguous() || x.is_channels_last() ? x : x.contiguous();
}

Shape shape_of(const Tensor& x) {
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

bool keeps_bits(int code) { return code == kRelu || code == kLeakyRelu || code == kRelu6; }

int64_t bit_bytes(const Shape& s) { return (s.channels_last ? s.n * s.s : s.n * s.c) * s.bit_row(); }

// (output, stats or None, bits or None). mean, var: given statistics or None. save: keep what the backward needs. sizes:
// how many samples each slice of the batch has, where slices have statistics of their own: stats is (3 * slices, C) then.
nb::tuple channel_forward(nb::handle input, nb::handle residual_, nb::handle weight_, nb::handle bias_, nb::handle mean_,
                          nb::handle var_, int64_t groups, double eps, int code, double activation_param, bool save,
                          const std::vector<int64_t>& sizes) {
    const Tensor x = dense(Tensor(input)), residual = Tensor(residual_).like(x);
    const Tensor weight = Tensor(weight_).contiguous(), bias = Tensor(bias_).contiguous();
    const Tensor mean = Tensor(mean_).contiguous(), var = Tensor(var_).contiguous();
    GroupForward a;
    a.shape = shape_of(x);
    const Tensor y = Tensor::empty_like(x);
    Tensor stats, bits;
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
    return nb::make_tuple(y.object(), stats.object(), bits.object());
}

// The batch's statistics (3, C) alone; the third row is 1 / sqrt(var).
nb::object channel_statistics(nb::handle input) {
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

// Gradients of input, weight, bias and residual, None where `needs` says so.
nb::tuple channel_backward(nb::handle dy_, nb::handle input, nb::handle residual_, nb::handle bits, nb::handle weight_,
                           nb::handle bias_, nb::handle stats, int64_t groups, bool training, int code,
                           double activation_param, bool need_input, bool need_weight, bool need_bias,
                           bool need_residual, const std::vector<int64_t>& sizes,
                           int64_t count) {
    const Tensor x = dense(Tensor(input)), dy = Tensor(dy_).like(x), residual = Tensor(residual_).like(x);
    const Tensor weight = Tensor(weight_).contiguous(), bias = Tensor(bias_).contiguous();
    const Tensor sign(bits), statistics(stats);
    Tensor dx, dweight, dbias, dresidual;
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
    const bool passes = need_residual && code == kIdentity;  // the residual's gradient is that of the output
    return nb::make_tuple(dx.object(), dweight.object(), dbias.object(), passes ? dy.object() : dresidual.object());
}

// (output, stats or None) over rows of `width` elements.
nb::tuple layer_forward(nb::handle input, int64_t width, bool rms, nb::handle weight_, nb::handle bias_, double eps,
                        bool save) {
    const Tensor x = Tensor(input).contiguous();
    const Tensor weight = Tensor(weight_).contiguous(), bias = Tensor(bias_).contiguous();
    const Tensor y = Tensor::empty_like(x);
    LayerForward a;
    a.width = width;
    a.rows = width ? x.elements() / width : 0;
    Tensor stats;
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
    return nb::make_tuple(y.object(), stats.object());
}

// Gradients of input, weight and bias, None where not needed.
nb::tuple layer_backward(nb::handle dy_, nb::handle input, int64_t width, bool rms, nb::handle weight_, nb::handle bias_,
                         nb::handle stats_, bool need_input, bool need_weight, bool need_bias) {
    const Tensor x = Tensor(input).contiguous(), dy = Tensor(dy_).like(x), stats(stats_);
    const Tensor weight = Tensor(weight_).contiguous(), bias(bias_);
    Tensor dx, dweight, dbias;
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
    return nb::make_tuple(dx.object(), dweight.object(), dbias.object());
}

bool is_plain(nb::handle tensor) {
    PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(tensor.ptr()));
    return type == torch()->tensor.ptr() || type == torch()->parameter.ptr();
}

// Whether a vector of n values on the CPU stands ready, of `dtype` (any where negative) or float32 beside half precision.
bool is_vector(nb::handle handle, int64_t n, int dtype) {
    if (handle.is_none()) return true;
    if (!is_plain(handle)) return false;
    const Tensor vector(handle);
    if (!vector.on_cpu() || vector.rank() != 1 || vector.size(0) != n || !vector.is_contiguous()) return false;
    const int own = vector.dtype();
    if (own == dtype || (dtype < 0 && own >= 0)) return true;
    return own == kFloat32 && (dtype == kBFloat16 || dtype == kFloat16);
}

// How many values each channel of a call has whose tensors are all as the kernels take them: plain, dense, on the CPU, of
// fitting sizes and dtypes. 0 for any other: the caller then looks closer and says what is wrong.
int64_t channel_ready(nb::handle input, nb::handle residual, nb::handle weight, nb::handle bias, nb::handle mean,
                      nb::handle var) {
    if (!is_plain(input)) return 0;
    try {
        const Tensor x(input);
        if (!x.on_cpu() || x.dtype() < 0 || x.rank() < 2 || x.elements() == 0) return 0;
        if (!x.is_contiguous() && !x.is_channels_last()) return 0;
        if (!residual.is_none()) {
            if (!is_plain(residual)) return 0;
            const Tensor r(residual);
            if (!r.on_cpu() || r.dtype() != x.dtype() || !r.same_layout(x)) return 0;
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
int64_t rows_ready(nb::handle input, int64_t width, nb::handle weight, nb::handle bias) {
    if (!is_plain(input)) return 0;
    try {
        const Tensor x(input);
        if (!x.on_cpu() || x.dtype() < 0 || x.rank() < 1 || x.size(x.rank() - 1) != width || !x.is_contiguous()) return 0;
        if (!is_vector(weight, width, x.dtype()) || !is_vector(bias, width, x.dtype())) return 0;
        return width ? x.elements() / width : 0;
    } catch (nb::python_error&) {
        return 0;
    }
}

// Moves running statistics in place and counts the batch: True; False where a new value is not finite and nothing was
// written; None for buffers that only torch's operations can move. momentum None: the cumulative average.
std::optional<bool> move_running_statistics(nb::handle stats, int64_t count, nb::handle mean_, nb::handle var_,
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

// Defines a function each of whose arguments may be None, positional only.
template <class Result, class... Arguments>
void define(nb::module_& m, const char* name, Result (*function)(Arguments...)) {
    m.def(name, function, (static_cast<void>(sizeof(Arguments)), nb::arg().none())...);
}

}  // namespace

NB_MODULE(_native, m) {
    choose();
    m.attr("INTERFACE") = kInterface;
    m.def("set_torch", [](nb::handle module) { torch() = new Torch(module); });
    m.def("isa", [] { return kernels->name; });
    m.def("isa_problem", [] { return problem.c_str(); });
    m.def("use_isa", [](const char* name) {  // for tests: whether this CPU and build have it; kernels change if so
        const char* why = nullptr;
        const Kernels* found = choose_kernels(name, &why);
        if (found != nullptr) kernels = found;
        return found != nullptr;
    });
    m.def("set_parallel", [](uintptr_t address) { parallel.loop = reinterpret_cast<ParallelFunction>(address); });
    m.def("keep_memory", [](int64_t bytes) { blocks().limit(bytes); });
    m.def("kept_memory", [] { return blocks().waiting(); });
    define(m, "channel_forward", &channel_forward);
    define(m, "channel_backward", &channel_backward);
    define(m, "channel_statistics", &channel_statistics);
    define(m, "channel_ready", &channel_ready);
    define(m, "layer_forward", &layer_forward);
    define(m, "layer_backward", &layer_backward);
    define(m, "rows_ready", &rows_ready);
    define(m, "move_running", &move_running_statistics);
}
