// Memory of large outputs, used again: a fresh mapping costs a page fault for every page, as much as the arithmetic.
//
// The C library hands large blocks back to the system as soon as they are freed, so each step of a training loop pays for
// them anew. Blocks given back here wait for the next output of about their size, the last one first: it may still be in
// the cache.
#pragma once
#include <cstdint>
#include <mutex>
#include <vector>

#include "aligned.h"
#include "pages.h"

namespace normkit {

constexpr int64_t kReuseBytes = int64_t(1) << 20;  // the C library keeps smaller ones well enough (tried: reuse)
constexpr int64_t kPatience = 1024;                // a block that so many requests passed by is freed

struct Block {
    void* data = nullptr;
    int64_t bytes = 0;
    int64_t since = 0;  // the request after which it began to wait
};

class Blocks {
  public:
    // A block of at least so many bytes; no data where there is no memory, or none may wait: then torch allocates.
    Block take(int64_t bytes) {
        {
            std::lock_guard<std::mutex> guard(mutex_);
            if (limit_ <= 0) return {};
            ++requests_;
            Waiting::iterator best = waiting_.end();
            for (auto block = waiting_.begin(); block != waiting_.end(); ++block)
                if (block->bytes >= bytes && block->bytes <= bytes + bytes / 8 &&
                    (best == waiting_.end() || block->bytes <= best->bytes))
                    best = block;
            if (best != waiting_.end()) {
                const Block block = *best;
                waiting_.erase(best);
                waiting_bytes_ -= block.bytes;
                return block;
            }
        }
        void* data = allocate_aligned(bytes, kHugePage);
        if (data == nullptr) return {};
        advise_huge_pages(data, bytes);
        return {data, bytes, 0};
    }

    void give_back(Block block) {
        Waiting surplus;
        {
            std::lock_guard<std::mutex> guard(mutex_);
            block.since = requests_;
            waiting_.push_back(block);
            waiting_bytes_ += block.bytes;
            surplus = surplus_now();
        }
        free_all(surplus);
    }

    // How many bytes may wait; 0 leaves all outputs to torch's allocator.
    void limit(int64_t bytes) {
        Waiting surplus;
        {
            std::lock_guard<std::mutex> guard(mutex_);
            limit_ = bytes;
            surplus = surplus_now();
        }
        free_all(surplus);
    }

    int64_t waiting() {
        std::lock_guard<std::mutex> guard(mutex_);
        return waiting_bytes_;
    }

  private:
    using Waiting = std::vector<Block>;

    // Takes out what is too much or has waited too long, the oldest first. The caller holds the lock.
    Waiting surplus_now() {
        auto first = waiting_.begin();
        while (first != waiting_.end() && (waiting_bytes_ > limit_ || requests_ - first->since > kPatience))
            waiting_bytes_ -= (first++)->bytes;
        Waiting surplus(waiting_.begin(), first);
        waiting_.erase(waiting_.begin(), first);
        return surplus;
    }

    static void free_all(const Waiting& blocks) {
        for (const Block& block : blocks) free_aligned(block.data);
    }

    std::mutex mutex_;
    Waiting waiting_;  // the oldest first
    int64_t waiting_bytes_ = 0, limit_ = 0, requests_ = 0;
};

inline Blocks& blocks() {
    static Blocks* all = new Blocks;  // never destroyed: tensors may outlive this library's statics
    return *all;
}

}  // namespace normkit
