// The running statistics: running = (1 - factor) * running + factor * new, the new variance unbiased.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "arguments.h"
#include "dlpack.h"
#include "edge.h"
#include "tensor.h"
#include "torch.h"
#include "view.h"

namespace normkit {

// One step from stats (3, C). Nothing is written where the batch's own mean or variance is not finite in the buffers'
// type; what the buffers held before is the caller's: a NaN or Inf there stays, as in torch.
template <class T> bool move_running(const double* stats, int64_t c, double unbias, T* mean, T* var, double factor) {
    auto is_finite = [](double value) { return std::abs(T(value)) <= std::numeric_limits<T>::max(); };  // NaN fails
    for (int64_t i = 0; i < c; ++i)
        if (!is_finite(stats[i]) || !is_finite(stats[c + i] * unbias)) return false;
    auto step = [&](T old, double value) { return T((1.0 - factor) * double(old) + factor * value); };
    for (int64_t i = 0; i < c; ++i) {
        mean[i] = step(mean[i], stats[i]);
        var[i] = step(var[i], stats[c + i] * unbias);
    }
    return true;
}

// Where running statistics live, as Python passes it: (mean, var, batches, momentum, deferred).
struct Running {
    nb::handle mean, var, batches, momentum, deferred;

    explicit Running(nb::handle tuple) {
        entries(tuple, 5, "running");
        mean = item(tuple, 0), var = item(tuple, 1), batches = item(tuple, 2), momentum = item(tuple, 3),
        deferred = item(tuple, 4);
    }
};

// Moves the buffers (mean and var of C values each) in place and counts the batch: True; False where the batch is not
// finite and nothing was written; None for buffers that only torch's operations can move. stats: mean and biased
// variance, (2 or more, C). momentum None: the cumulative average.
inline std::optional<bool> move_running_statistics(const Edge& edge, const double* stats, int64_t c, int64_t count,
                                                   nb::handle mean_, nb::handle var_, nb::handle batches_,
                                                   nb::handle momentum_) {
    std::optional<double> momentum;
    if (!momentum_.is_none()) momentum = number(momentum_, "momentum");
    if (count < 2) edge.refuse(PyExc_ValueError, "count", " must be at least 2, got " + std::to_string(count));
    const Tensor mean = edge.buffer(mean_, c, "running_mean"), var = edge.buffer(var_, c, "running_var");
    const int dtype = mean.dtype();
    if ((dtype != kFloat32 && dtype != kFloat64) || var.dtype() != dtype) return {};
    const Tensor batches = edge.any(batches_, "num_batches_tracked");
    if (batches) {
        if (batches.object().ptr() != batches_.ptr() || batches.elements() != 1 || !batches.is(dlpack::kInt, 64))
            return {};
    } else if (!momentum) {
        return {};
    }
    int64_t* counted = batches.data<int64_t>();
    const double factor = momentum ? *momentum : 1.0 / double(*counted + 1);
    const double unbias = double(count) / double(count - 1);
    const bool moved = dtype == kFloat64
                           ? move_running(stats, c, unbias, mean.data<double>(), var.data<double>(), factor)
                           : move_running(stats, c, unbias, mean.data<float>(), var.data<float>(), factor);
    if (!moved) return false;
    if (counted) *counted += 1;
    torch()->increment_versions(batches ? nb::make_tuple(mean.object(), var.object(), batches.object())
                                        : nb::make_tuple(mean.object(), var.object()));
    return true;
}

}  // namespace normkit
