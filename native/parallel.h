// Threads come from outside as one function pointer with the signature of libtorch's C symbol torch_parallel_for, so
// that the kernels share torch's pool and obey set_num_threads. Without it everything runs on the calling thread.
//
// Rule: the grid of tasks depends on shapes only, each task is self-contained, merges run in task order. The result is
// therefore the same bits for every number of threads.
#pragma once
#include <cstdint>

namespace normkit {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFunction = int (*)(int64_t begin, int64_t end, int64_t grain, RangeFunction, void* context);

// Work that reads fewer bytes than this stays on one thread: waking the pool costs 1 to 3 us while it spins, 200 us and more
// once it sleeps, and one thread reads this much in about 5 us.
constexpr int64_t kSerialBytes = 64 * 1024;

struct Parallel {
    ParallelFunction loop = nullptr;

    // body(begin, end) over [0, tasks); bytes: what the whole loop reads, to decide whether threads pay.
    template <class Body> void operator()(int64_t tasks, int64_t bytes, Body&& body) const {
        if (tasks <= 0) return;
        if (loop == nullptr || tasks == 1 || bytes <= kSerialBytes) {
            body(int64_t(0), tasks);
            return;
        }
        auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); };
        loop(0, tasks, 1, call, &body);
    }
};

}  // namespace normkit
