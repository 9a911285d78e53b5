// Python's door: raw addresses and sizes in, nothing out. The only file that includes Python headers.
//
// groups = 0: statistics per channel over the batch; groups > 0: per sample and group.
// No check of arguments happens here: src/normkit/kernels/native.py is the only caller and makes them right. The GIL is
// released while a kernel runs.
#include <nanobind/nanobind.h>

#include <cstdlib>
#include <limits>
#include <string>

#include "dispatch.h"
#include "pages.h"

namespace nb = nanobind;
using namespace normkit;

namespace {

const Kernels* kernels = nullptr;
std::string problem;
Parallel parallel;

int64_t size_of(int dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

template <class P> P* at(uintptr_t address) { return reinterpret_cast<P*>(address); }

void choose() {
    const char* asked = std::getenv("NORMKIT_ISA");
    const char* why = nullptr;
    kernels = choose_kernels(asked, &why);
    if (kernels == nullptr) {
        problem = std::string("NORMKIT_ISA=") + asked + ": " + why;
        kernels = choose_kernels(nullptr, &why);
    }
}

void channel_forward(int dtype, int64_t n, int64_t c, int64_t s, bool last, int64_t groups, uintptr_t x, uintptr_t residual,
                     uintptr_t y, uintptr_t bits, uintptr_t weight, int weight_dtype, uintptr_t bias, int bias_dtype,
                     uintptr_t mean, int mean_dtype, uintptr_t var, int var_dtype, uintptr_t stats, double eps, int code,
                     double param) {
    GroupForward a;
    a.groups = groups;
    a.dtype = dtype;
    a.shape = {n, c, s, last};
    a.x = at<const void>(x);
    a.residual = at<const void>(residual);
    a.y = at<void>(y);
    a.bits = at<uint8_t>(bits);
    a.weight = {at<const void>(weight), weight_dtype};
    a.bias = {at<const void>(bias), bias_dtype};
    a.mean = {at<const void>(mean), mean_dtype};
    a.var = {at<const void>(var), var_dtype};
    a.stats = at<double>(stats);
    a.eps = eps;
    a.activation = {code, param};
    nb::gil_scoped_release release;
    advise_huge_pages(a.y, a.shape.elements() * size_of(dtype));
    if (groups > 0) kernels->group_forward(a, parallel);
    else kernels->channel_forward(a, parallel);
}

void channel_backward(int dtype, int64_t n, int64_t c, int64_t s, bool last, int64_t groups, uintptr_t dy, uintptr_t x,
                      uintptr_t residual, uintptr_t bits, uintptr_t weight, int weight_dtype, uintptr_t bias,
                      int bias_dtype, uintptr_t stats, uintptr_t dx, uintptr_t dresidual, uintptr_t dweight,
                      int dweight_dtype, uintptr_t dbias, int dbias_dtype, bool training, int code, double param) {
    GroupBackward a;
    a.groups = groups;
    a.dtype = dtype;
    a.shape = {n, c, s, last};
    a.dy = at<const void>(dy);
    a.x = at<const void>(x);
    a.residual = at<const void>(residual);
    a.bits = at<const uint8_t>(bits);
    a.weight = {at<const void>(weight), weight_dtype};
    a.bias = {at<const void>(bias), bias_dtype};
    a.stats = at<const double>(stats);
    a.dx = at<void>(dx);
    a.dresidual = at<void>(dresidual);
    a.dweight = {at<void>(dweight), dweight_dtype};
    a.dbias = {at<void>(dbias), dbias_dtype};
    a.training = training;
    a.activation = {code, param};
    nb::gil_scoped_release release;
    advise_huge_pages(a.dx, a.shape.elements() * size_of(dtype));
    advise_huge_pages(a.dresidual, a.shape.elements() * size_of(dtype));
    if (groups > 0) kernels->group_backward(a, parallel);
    else kernels->channel_backward(a, parallel);
}

void layer_forward(int dtype, int64_t rows, int64_t width, bool rms, uintptr_t x, uintptr_t y, uintptr_t weight,
                   int weight_dtype, uintptr_t bias, int bias_dtype, uintptr_t stats, double eps) {
    LayerForward a;
    a.dtype = dtype;
    a.rows = rows;
    a.width = width;
    a.rms = rms;
    a.x = at<const void>(x);
    a.y = at<void>(y);
    a.weight = {at<const void>(weight), weight_dtype};
    a.bias = {at<const void>(bias), bias_dtype};
    a.stats = at<double>(stats);
    a.eps = eps;
    nb::gil_scoped_release release;
    advise_huge_pages(a.y, rows * width * size_of(dtype));
    kernels->layer_forward(a, parallel);
}

void layer_backward(int dtype, int64_t rows, int64_t width, bool rms, uintptr_t dy, uintptr_t x, uintptr_t weight,
                    int weight_dtype, uintptr_t stats, uintptr_t dx, uintptr_t dweight, int dweight_dtype,
                    uintptr_t dbias, int dbias_dtype) {
    LayerBackward a;
    a.dtype = dtype;
    a.rows = rows;
    a.width = width;
    a.rms = rms;
    a.dy = at<const void>(dy);
    a.x = at<const void>(x);
    a.weight = {at<const void>(weight), weight_dtype};
    a.stats = at<const double>(stats);
    a.dx = at<void>(dx);
    a.dweight = {at<void>(dweight), dweight_dtype};
    a.dbias = {at<void>(dbias), dbias_dtype};
    nb::gil_scoped_release release;
    advise_huge_pages(a.dx, rows * width * size_of(dtype));
    kernels->layer_backward(a, parallel);
}

// One step of the running statistics; nothing is written when any new value is not finite in the buffer's dtype.
template <class T> bool move(const double* stats, int64_t c, double unbias, T* mean, T* var, double factor) {
    auto step = [&](T old, double value) { return T((1.0 - factor) * double(old) + factor * value); };
    const T top = std::numeric_limits<T>::max();
    for (int64_t i = 0; i < c; ++i) {  // a comparison that NaN fails
        if (!(std::abs(step(mean[i], stats[i])) <= top)) return false;
        if (!(std::abs(step(var[i], stats[c + i] * unbias)) <= top)) return false;
    }
    for (int64_t i = 0; i < c; ++i) {
        mean[i] = step(mean[i], stats[i]);
        var[i] = step(var[i], stats[c + i] * unbias);
    }
    return true;
}

bool move_running(int dtype, int64_t c, uintptr_t stats, double unbias, uintptr_t mean, uintptr_t var, double factor) {
    if (dtype == kFloat64) return move(at<const double>(stats), c, unbias, at<double>(mean), at<double>(var), factor);
    return move(at<const double>(stats), c, unbias, at<float>(mean), at<float>(var), factor);
}

}  // namespace

NB_MODULE(_native, m) {
    choose();
    m.def("isa", [] { return kernels->name; });
    m.def("isa_problem", [] { return problem.c_str(); });
    m.def("use_isa", [](const char* name) {  // for tests: whether this CPU and build have it; kernels change if so
        const char* why = nullptr;
        const Kernels* found = choose_kernels(name, &why);
        if (found != nullptr) kernels = found;
        return found != nullptr;
    });
    m.def("set_parallel", [](uintptr_t address) { parallel.loop = reinterpret_cast<ParallelFunction>(address); });
    m.def("channel_forward", &channel_forward);
    m.def("channel_backward", &channel_backward);
    m.def("layer_forward", &layer_forward);
    m.def("layer_backward", &layer_backward);
    m.def("move_running", &move_running);
}
