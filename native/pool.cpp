// Compiled once, for every CPU: nothing that an instruction set's files define may have a name that others share.
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#include "parallel.h"

namespace normkit {

namespace {

// Seconds. A region loses what it takes more than the calling thread alone would, or gains what it takes less.
constexpr double kLoss = 0.0005;                    // so much lost, and the pool is left out
constexpr double kCredit = 0.02;                    // so much gained is remembered: now and then every thread is held up
constexpr double kFirstRest = 0.004, kRest = 0.25;  // for how long; twice as long each time, at most
constexpr double kTrust = 0.002;                    // so much gained, and the next rest is a first one
constexpr double kAwake = 0.001;                    // a pool at rest for longer has to wake: no loss to be counted

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::atomic<ParallelFunction> pool{nullptr};

// Of one calling thread.
struct Experience {
    double gained = 0;         // by the regions of late
    double until = 0;          // when the pool is asked again
    double rest = kFirstRest;
    double last = 0;           // when the last region ended

    void add(double begin, double alone, double end) {
        const double region = end - begin;
        const bool awake = begin - last < kAwake;
        last = end;
        if (!awake) return;
        gained = std::min(gained + alone - region, kCredit);
        if (gained > kTrust) rest = kFirstRest;
        if (gained > -kLoss) return;
        gained = 0;
        until = end + rest;
        rest = std::min(2 * rest, kRest);
    }
};

thread_local Experience experience;

struct Region {
    RangeFunction body;
    void* context;
    std::thread::id caller;
    int64_t own = 0;  // tasks of the calling thread
    double done = 0;  // when it had done them
};

void run(int64_t begin, int64_t end, void* context) {
    Region& region = *static_cast<Region*>(context);
    region.body(begin, end, region.context);
    if (std::this_thread::get_id() != region.caller) return;
    region.own += end - begin;
    region.done = now();
}

int share(int64_t begin, int64_t end, int64_t grain, RangeFunction body, void* context) {
    Experience& so_far = experience;
    const double start = now();
    if (start < so_far.until) {
        body(begin, end, context);
        return 0;
    }
    Region region{body, context, std::this_thread::get_id()};
    const int failed = pool.load(std::memory_order_relaxed)(begin, end, grain, run, &region);
    const double last = now();
    if (region.own > 0 && region.own < end - begin)
        so_far.add(start, (region.done - start) * double(end - begin) / double(region.own), last);
    return failed;
}

}  // namespace

ParallelFunction loop_over(ParallelFunction threads) {
    pool.store(threads, std::memory_order_relaxed);
    return threads == nullptr ? nullptr : share;
}

}  // namespace normkit
