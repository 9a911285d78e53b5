// Python's door: the functions of the module. src/normkit/kernels/native.py is the only caller.
#include "autograd.h"
#include "ready.h"

using namespace normkit;

namespace {

constexpr int kInterface = 5;  // goes up with any change of these functions; core.py holds the same number

nb::tuple forward_tuple(nb::handle input, nb::handle residual, nb::handle weight, nb::handle bias, nb::handle mean,
                        nb::handle var, int64_t groups, double eps, int code, double param, bool save,
                        const std::vector<int64_t>& sizes) {
    auto made = channel_forward(input, residual, weight, bias, mean, var, groups, eps, code, param, save, sizes);
    return nb::make_tuple(made.y.object(), made.stats.object(), made.bits.object());
}

nb::tuple backward_tuple(nb::handle dy, nb::handle input, nb::handle residual, nb::handle bits, nb::handle weight,
                         nb::handle bias, nb::handle stats, int64_t groups, bool training, int code, double param,
                         bool need_input, bool need_weight, bool need_bias, bool need_residual,
                         const std::vector<int64_t>& sizes, int64_t count) {
    auto made = channel_backward(dy, input, residual, bits, weight, bias, stats, groups, training, code, param, need_input,
                                 need_weight, need_bias, need_residual, sizes, count);
    return nb::make_tuple(made.input.object(), made.weight.object(), made.bias.object(), made.residual.object());
}

nb::tuple layer_forward_tuple(nb::handle input, int64_t width, bool rms, nb::handle weight, nb::handle bias, double eps,
                              bool save) {
    auto made = layer_forward(input, width, rms, weight, bias, eps, save);
    return nb::make_tuple(made.y.object(), made.stats.object());
}

nb::tuple layer_backward_tuple(nb::handle dy, nb::handle input, int64_t width, bool rms, nb::handle weight, nb::handle bias,
                               nb::handle stats, bool need_input, bool need_weight, bool need_bias) {
    auto made = layer_backward(dy, input, width, rms, weight, bias, stats, need_input, need_weight, need_bias);
    return nb::make_tuple(made.input.object(), made.weight.object(), made.bias.object());
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
    define(m, "channel_forward", &forward_tuple);
    define(m, "channel_backward", &backward_tuple);
    define(m, "channel_statistics", &channel_statistics);
    define(m, "channel_ready", &channel_ready);
    define(m, "layer_forward", &layer_forward_tuple);
    define(m, "layer_backward", &layer_backward_tuple);
    define(m, "channel_function", &channel_function);
    define(m, "channel_gradients", &channel_gradients);
    define(m, "layer_function", &layer_function);
    define(m, "layer_gradients", &layer_gradients);
    define(m, "rows_ready", &rows_ready);
    define(m, "move_running", &move_running_statistics);
}
