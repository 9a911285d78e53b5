// Sweeps over tasks, one after the other, in one parallel region: a sweep begins where the one before is done.
//
// Threads take tasks as they come, beginning at places of their own; so one that the system holds up, or that wakes late,
// delays its own task alone. A region for each sweep waits for all threads every time.
//
// Rule: which thread takes a task changes nothing.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>

#include "parallel.h"

namespace normkit {

// Called again and again by a thread that finds nothing to do, with the number of times: others are at their last tasks,
// for a few microseconds; or the system holds one up, and then the core is left to it. In sweeps.cpp.
void wait_for_others(int times);

namespace NK_ISA {

// Whether a task, done by nobody (0) so far, is the worker's of this number now.
inline bool claim(std::atomic<int>& by, int number) {
    int nobody = 0;
    return by.load(std::memory_order_relaxed) == 0 &&
           by.compare_exchange_strong(nobody, number, std::memory_order_relaxed);
}

// body(task) for each task; bytes: what all of them read. again: a sweep over what the first one has read, in the same
// tasks: a thread begins with those that it took then, the last first, which are nearest.
template <class Body> struct Sweep {
    int64_t tasks, bytes;
    Body body;
    bool again = false;

    // By one thread.
    void run() const {
        for (int64_t i = 0; i < tasks; ++i) body(again ? tasks - 1 - i : i);
    }
};
template <class Body> Sweep(int64_t, int64_t, Body) -> Sweep<Body>;
template <class Body> Sweep(int64_t, int64_t, Body, bool) -> Sweep<Body>;

class Turns {
  public:
    static constexpr int64_t kMostSweeps = 3;  // sums, their merge, outputs

    // places: how many there are to begin at.
    Turns(int64_t places, std::initializer_list<int64_t> tasks) : places_(places) {
        int64_t total = 0;
        for (int64_t count : tasks) total += count;
        if (total <= kFew) return;
        many_.reset(new std::atomic<int>[size_t(total)]());
        taken_ = many_.get();
    }

    struct Worker {
        int number;     // from 1
        int64_t begin;  // its place
        int64_t sweep = 0, offset = 0, before = 0;
    };
    Worker worker(int64_t begin) { return {workers_.fetch_add(1, std::memory_order_relaxed) + 1, begin}; }

    template <class Body> void take(Worker& w, const Sweep<Body>& sweep) {
        if (w.sweep > 0)
            for (int idle = 0; done_[w.sweep - 1].load(std::memory_order_acquire) < w.before;) wait_for_others(++idle);
        const int64_t place = w.begin * sweep.tasks / places_;
        if (sweep.again)
            for (int64_t i = sweep.tasks - 1; i >= 0; --i) {
                const int64_t task = (place + i) % sweep.tasks;
                if (taken_[task].load(std::memory_order_relaxed) == w.number) run(w, sweep, task);
            }
        for (int64_t i = 0; i < sweep.tasks; ++i) run(w, sweep, (place + i) % sweep.tasks);
        ++w.sweep;
        w.offset += sweep.tasks;
        w.before = sweep.tasks;
    }

  private:
    template <class Body> void run(const Worker& w, const Sweep<Body>& sweep, int64_t task) {
        if (!claim(taken_[w.offset + task], w.number)) return;
        sweep.body(task);
        done_[w.sweep].fetch_add(1, std::memory_order_acq_rel);
    }

    static constexpr int64_t kFew = 96;  // tasks, of which a record needs no memory of its own
    const int64_t places_;
    std::atomic<int> few_[kFew]{};
    std::unique_ptr<std::atomic<int>[]> many_;
    std::atomic<int>* taken_ = few_;            // by which worker, of all sweeps' tasks
    std::atomic<int64_t> done_[kMostSweeps]{};  // tasks, of each sweep
    std::atomic<int> workers_{0};
};

// leave(): what each thread does at its end. Threads are asked for where some sweep pays for them.
template <class Leave, class... Bodies>
void in_turn(const Parallel& parallel, const Leave& leave, const Sweep<Bodies>&... sweeps) {
    static_assert(sizeof...(Bodies) <= Turns::kMostSweeps);
    const int64_t shares = std::max({parallel.shares(sweeps.tasks, sweeps.bytes)...});
    if (shares <= 1) {
        (sweeps.run(), ...);
        return leave();
    }
    Turns turns(shares, {sweeps.tasks...});
    auto work = [&](int64_t begin, int64_t) {
        Turns::Worker worker = turns.worker(begin);
        (turns.take(worker, sweeps), ...);
        leave();
    };
    parallel.share(shares, work);
}

}  // namespace NK_ISA
}  // namespace normkit
