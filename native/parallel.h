// Threads come from outside as one function pointer with the signature of libtorch's C symbol torch_parallel_for, so
// that the kernels share torch's pool and obey set_num_threads. Without it everything runs on the calling thread.
//
// Rule: the grid of tasks depends on shapes only, each task is self-contained, merges run in task order. The result is
// therefore the same bits for every number of threads.
#pragma once
#include <algorithm>
#include <cstdint>

namespace normkit {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFunction = int (*)(int64_t begin, int64_t end, int64_t grain, RangeFunction, void* context);

// Work that reads fewer bytes than this stays on one thread: waking the pool costs 1 to 3 us while it spins, 200 us and more
// once it sleeps, and one thread reads this much in about 5 us (tried: serial-bytes, serial-bytes-128).
constexpr int64_t kSerialBytes = 64 * 1024;

struct Parallel {
    ParallelFunction loop = nullptr;

    // Among how many threads at most it pays to share these tasks, which read so many bytes.
    int64_t shares(int64_t tasks, int64_t bytes) const {
        return loop == nullptr || bytes <= kSerialBytes ? std::min(tasks, int64_t(1)) : tasks;
    }

    // body(begin, end) over [0, tasks); bytes: what the whole loop reads, to decide whether threads pay.
    template <class Body> void operator()(int64_t tasks, int64_t bytes, Body&& body) const {
        if (tasks <= 0) return;
        if (shares(tasks, bytes) == 1) return body(int64_t(0), tasks);
        share(tasks, body);
    }

    // The same by threads.
    template <class Body> void share(int64_t tasks, Body& body) const {
        auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); };
        loop(0, tasks, 1, call, &body);
    }
};

}  // namespace normkit
