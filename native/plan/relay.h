// Work that passes through memory twice, chunk by chunk, in one parallel region: the units of a chunk are summed, the
// chunk is finished, its units are written while they are still in the cache.
//
// A thread takes the units that lie at its place, writes those that it has summed, and then what others have left; so one
// that the system holds up delays its own unit alone. A region for each sweep would wait for it, and for its waking, every
// time: with one other busy process on 2 cores, group norm channels last took 260 ms instead of 20.
//
// Rule: which thread takes a unit changes nothing: a unit's sums have a place of their own and `finish` merges them in
// their order.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "parallel.h"
#include "plan/sweeps.h"

namespace normkit {

namespace NK_ISA {

constexpr int64_t kInFlight =
    4;  // chunks that may be begun and not written, each with a slot of memory: two unless a thread is late

// Steps has units(chunk), as many for every chunk but a shorter last; prepare(chunk, slot), sums(chunk, slot, unit),
// finish(chunk, slot), output(chunk, slot, unit), and leave(), called by each thread at its end.
template <class Steps> class Relay {
  public:
    Relay(const Steps& steps, int64_t chunks)
        : steps_(steps), chunks_(chunks), units_(steps.units(0)),
          total_((chunks - 1) * units_ + steps.units(chunks - 1)), chunk_(new Chunk[chunks]), unit_(new Unit[total_]) {
        for (int64_t chunk = 0; chunk < std::min(chunks, kInFlight); ++chunk) prepare(chunk);
    }

    // bytes: what all of it reads.
    void run(const Parallel& parallel, int64_t bytes) {
        parallel(total_, bytes, [&](int64_t begin, int64_t) {
            Worker worker{threads_.fetch_add(1, std::memory_order_relaxed) + 1, begin * units_ / total_};
            for (int idle = 0; worker.output < chunks_;)
                if (write(worker) || sum(worker)) idle = 0;
                else wait_for_others(++idle);
            steps_.leave();
        });
    }

  private:
    struct Chunk {
        std::atomic<int64_t> summed{0}, written{0};
        std::atomic<bool> prepared{false}, finished{false};
    };
    struct Unit {
        std::atomic<int> summed_by{0}, written_by{0};  // which worker, from 1
    };
    struct Worker {
        int number;
        int64_t place;                // the first unit of a chunk that it sums
        int64_t sum = 0, output = 0;  // the chunks it is at
    };

    // A unit of the chunk to be summed, from the worker's place upwards; -1: all are taken.
    int64_t take_sum(const Worker& worker) {
        const int64_t count = steps_.units(worker.sum);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t unit = (worker.place + i) % count;
            if (claim(unit_[worker.sum * units_ + unit].summed_by, worker.number)) return unit;
        }
        return -1;
    }
    // A unit of the chunk to be written: of its own what it summed last, which is nearest; then anyone's.
    int64_t take_output(const Worker& worker) {
        const int64_t count = steps_.units(worker.output);
        for (const bool own : {true, false})
            for (int64_t i = count - 1; i >= 0; --i) {
                const int64_t unit = (worker.place + i) % count;
                Unit& u = unit_[worker.output * units_ + unit];
                if (own == (u.summed_by.load(std::memory_order_relaxed) == worker.number) &&
                    claim(u.written_by, worker.number))
                    return unit;
            }
        return -1;
    }
    // Whether this was the last unit of its chunk to be done; what the others wrote is seen then.
    bool is_last(int64_t chunk, std::atomic<int64_t> Chunk::*done) {
        return (chunk_[chunk].*done).fetch_add(1, std::memory_order_acq_rel) + 1 == steps_.units(chunk);
    }
    void prepare(int64_t chunk) {
        steps_.prepare(chunk, chunk % kInFlight);
        chunk_[chunk].prepared.store(true, std::memory_order_release);
    }

    bool sum(Worker& worker) {
        for (; worker.sum < chunks_; ++worker.sum) {
            const int64_t chunk = worker.sum, slot = chunk % kInFlight;
            if (!chunk_[chunk].prepared.load(std::memory_order_acquire)) return false;
            const int64_t unit = take_sum(worker);
            if (unit < 0) continue;
            steps_.sums(chunk, slot, unit);
            if (is_last(chunk, &Chunk::summed)) {
                steps_.finish(chunk, slot);
                chunk_[chunk].finished.store(true, std::memory_order_release);
            }
            return true;
        }
        return false;
    }
    bool write(Worker& worker) {
        for (; worker.output < chunks_; ++worker.output) {
            const int64_t chunk = worker.output, slot = chunk % kInFlight;
            if (!chunk_[chunk].finished.load(std::memory_order_acquire)) return false;
            const int64_t unit = take_output(worker);
            if (unit < 0) continue;
            steps_.output(chunk, slot, unit);
            if (is_last(chunk, &Chunk::written) && chunk + kInFlight < chunks_) prepare(chunk + kInFlight);
            return true;
        }
        return false;
    }

    const Steps& steps_;
    const int64_t chunks_, units_, total_;
    std::unique_ptr<Chunk[]> chunk_;
    std::unique_ptr<Unit[]> unit_;
    std::atomic<int> threads_{0};
};

template <class Steps> void relay(const Steps& steps, int64_t chunks, const Parallel& parallel, int64_t bytes) {
    Relay<Steps>(steps, chunks).run(parallel, bytes);
}

}  // namespace NK_ISA
}  // namespace normkit
