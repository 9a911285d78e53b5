// Python's door: tensors (as objects with data_ptr and dtype) and sizes in, nothing out. The only file that includes Python headers.
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

// The names and dtypes that are looked up at each call, made once.
struct Names {
    PyObject *data_ptr = PyUnicode_InternFromString("data_ptr"), *dtype = PyUnicode_InternFromString("dtype");
    PyObject* dtypes[4] = {};
};
Names* names = nullptr;

// The address of a tensor's first element, null for None. Done here because each step costs less than in Python.
uintptr_t address(nb::handle tensor) {
    if (tensor.is_none()) return 0;
    PyObject* value = PyObject_CallMethodNoArgs(tensor.ptr(), names->data_ptr);
    if (value == nullptr) nb::raise_python_error();
    const uintptr_t found = uintptr_t(PyLong_AsUnsignedLongLong(value));
    Py_DECREF(value);
    return found;
}

int dtype_of(nb::handle tensor) {
    PyObject* dtype = PyObject_GetAttr(tensor.ptr(), names->dtype);
    if (dtype == nullptr) nb::raise_python_error();
    Py_DECREF(dtype);  // torch keeps its dtypes alive
    for (int code = 0; code < 4; ++code)
        if (names->dtypes[code] == dtype) return code;
    nb::raise_type_error("the native kernels know float32, float64, bfloat16 and float16 only");
}

Param param(nb::handle tensor) {
    if (tensor.is_none()) return {};
    return {at<const void>(address(tensor)), dtype_of(tensor)};
}

MutableParam mutable_param(nb::handle tensor) {
    if (tensor.is_none()) return {};
    return {at<void>(address(tensor)), dtype_of(tensor)};
}

using Tensor = nb::handle;  // or None

void channel_forward(int64_t n, int64_t c, int64_t s, bool last, int64_t groups, Tensor x, Tensor residual, Tensor y,
                     Tensor bits, Tensor weight, Tensor bias, Tensor mean, Tensor var, Tensor stats, double eps, int code,
                     double activation_param) {
    GroupForward a;
    a.groups = groups;
    a.dtype = dtype_of(x);
    a.shape = {n, c, s, last};
    a.x = at<const void>(address(x));
    a.residual = at<const void>(address(residual));
    a.y = at<void>(address(y));
    a.bits = at<uint8_t>(address(bits));
    a.weight = param(weight);
    a.bias = param(bias);
    a.mean = param(mean);
    a.var = param(var);
    a.stats = at<double>(address(stats));
    a.eps = eps;
    a.activation = {code, activation_param};
    nb::gil_scoped_release release;
    advise_huge_pages(a.y, a.shape.elements() * size_of(a.dtype));
    if (groups > 0) kernels->group_forward(a, parallel);
    else kernels->channel_forward(a, parallel);
}

void channel_backward(int64_t n, int64_t c, int64_t s, bool last, int64_t groups, Tensor dy, Tensor x, Tensor residual,
                      Tensor bits, Tensor weight, Tensor bias, Tensor stats, Tensor dx, Tensor dresidual, Tensor dweight,
                      Tensor dbias, bool training, int code, double activation_param) {
    GroupBackward a;
    a.groups = groups;
    a.dtype = dtype_of(x);
    a.shape = {n, c, s, last};
    a.dy = at<const void>(address(dy));
    a.x = at<const void>(address(x));
    a.residual = at<const void>(address(residual));
    a.bits = at<const uint8_t>(address(bits));
    a.weight = param(weight);
    a.bias = param(bias);
    a.stats = at<const double>(address(stats));
    a.dx = at<void>(address(dx));
    a.dresidual = at<void>(address(dresidual));
    a.dweight = mutable_param(dweight);
    a.dbias = mutable_param(dbias);
    a.training = training;
    a.activation = {code, activation_param};
    nb::gil_scoped_release release;
    advise_huge_pages(a.dx, a.shape.elements() * size_of(a.dtype));
    advise_huge_pages(a.dresidual, a.shape.elements() * size_of(a.dtype));
    if (groups > 0) kernels->group_backward(a, parallel);
    else kernels->channel_backward(a, parallel);
}

void layer_forward(int64_t rows, int64_t width, bool rms, Tensor x, Tensor y, Tensor weight, Tensor bias, Tensor stats,
                   double eps) {
    LayerForward a;
    a.dtype = dtype_of(x);
    a.rows = rows;
    a.width = width;
    a.rms = rms;
    a.x = at<const void>(address(x));
    a.y = at<void>(address(y));
    a.weight = param(weight);
    a.bias = param(bias);
    a.stats = at<double>(address(stats));
    a.eps = eps;
    nb::gil_scoped_release release;
    advise_huge_pages(a.y, rows * width * size_of(a.dtype));
    kernels->layer_forward(a, parallel);
}

void layer_backward(int64_t rows, int64_t width, bool rms, Tensor dy, Tensor x, Tensor weight, Tensor stats, Tensor dx,
                    Tensor dweight, Tensor dbias) {
    LayerBackward a;
    a.dtype = dtype_of(x);
    a.rows = rows;
    a.width = width;
    a.rms = rms;
    a.dy = at<const void>(address(dy));
    a.x = at<const void>(address(x));
    a.weight = param(weight);
    a.stats = at<const double>(address(stats));
    a.dx = at<void>(address(dx));
    a.dweight = mutable_param(dweight);
    a.dbias = mutable_param(dbias);
    nb::gil_scoped_release release;
    advise_huge_pages(a.dx, rows * width * size_of(a.dtype));
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

bool move_running(int64_t c, Tensor stats, double unbias, Tensor mean, Tensor var, double factor) {
    const auto* found = at<const double>(address(stats));
    if (dtype_of(mean) == kFloat64)
        return move(found, c, unbias, at<double>(address(mean)), at<double>(address(var)), factor);
    return move(found, c, unbias, at<float>(address(mean)), at<float>(address(var)), factor);
}

// Defines a function each of whose arguments may be None, positional only.
template <class... Arguments> void define(nb::module_& m, const char* name, void (*function)(Arguments...)) {
    m.def(name, function, (static_cast<void>(sizeof(Arguments)), nb::arg().none())...);
}

}  // namespace

NB_MODULE(_native, m) {
    choose();
    names = new Names;
    m.def("set_dtypes", [](nb::handle f32, nb::handle f64, nb::handle bf16, nb::handle f16) {
        PyObject* dtypes[] = {f32.ptr(), f64.ptr(), bf16.ptr(), f16.ptr()};
        std::copy(dtypes, dtypes + 4, names->dtypes);
    });
    m.def("isa", [] { return kernels->name; });
    m.def("isa_problem", [] { return problem.c_str(); });
    m.def("use_isa", [](const char* name) {  // for tests: whether this CPU and build have it; kernels change if so
        const char* why = nullptr;
        const Kernels* found = choose_kernels(name, &why);
        if (found != nullptr) kernels = found;
        return found != nullptr;
    });
    m.def("set_parallel", [](uintptr_t address) { parallel.loop = reinterpret_cast<ParallelFunction>(address); });
    define(m, "channel_forward", &channel_forward);
    define(m, "channel_backward", &channel_backward);
    define(m, "layer_forward", &layer_forward);
    define(m, "layer_backward", &layer_backward);
    m.def("move_running", &move_running);
}
