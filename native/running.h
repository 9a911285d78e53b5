// The running statistics: running = (1 - factor) * running + factor * new, the new variance unbiased.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

namespace normkit {

// One step from stats (3, C); nothing is written when any new value is not finite in the buffers' type.
template <class T> bool move_running(const double* stats, int64_t c, double unbias, T* mean, T* var, double factor) {
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

}  // namespace normkit
