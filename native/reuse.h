// Memory of large outputs, used again: a fresh mapping costs a page fault for every page, as much as the arithmetic.
//
// The C library hands blocks beyond 32 MB back to the system as soon as they are freed, so each step of a training loop
// pays for them anew. Blocks given back here wait for the next output of about their size. While they wait the system
// may take their pages whenever it needs memory (MADV_FREE).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "pages.h"

namespace normkit {

constexpr int64_t kReuseBytes = int64_t(16) << 20;   // smaller outputs come from the C library, which reuses those
constexpr int64_t kHugePage = int64_t(2) << 20;

struct Block {
    void* data = nullptr;
    int64_t bytes = 0;
};

class Blocks {
  public:
    // A block of at least so many bytes, null where there is no memory.
    Block take(int64_t bytes) {
        {
            std::lock_guard<std::mutex> guard(mutex_);
            size_t best = waiting_.size();
            for (size_t i = 0; i < waiting_.size(); ++i)
                if (waiting_[i].bytes >= bytes && (best == waiting_.size() || waiting_[i].bytes < waiting_[best].bytes))
                    best = i;
            if (best < waiting_.size() && waiting_[best].bytes <= bytes + bytes / 8) {
                Block block = waiting_[best];
                waiting_.erase(waiting_.begin() + int64_t(best));
                waiting_bytes_ -= block.bytes;
                return block;
            }
        }
        const int64_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
        Block block{std::aligned_alloc(size_t(kHugePage), size_t(whole)), whole};
        advise_huge_pages(block.data, whole);
        return block;
    }

    void give_back(Block block) {
        std::vector<Block> surplus;
        {
            std::lock_guard<std::mutex> guard(mutex_);
            waiting_.push_back(block);
            waiting_bytes_ += block.bytes;
            while (waiting_bytes_ > limit_) {  // the oldest goes first
                surplus.push_back(waiting_.front());
                waiting_bytes_ -= waiting_.front().bytes;
                waiting_.erase(waiting_.begin());
            }
        }
        for (Block old : surplus) std::free(old.data);
    }

    void limit(int64_t bytes) {
        std::lock_guard<std::mutex> guard(mutex_);
        limit_ = bytes;
    }

    int64_t waiting() {
        std::lock_guard<std::mutex> guard(mutex_);
        return waiting_bytes_;
    }

  private:
    std::mutex mutex_;
    std::vector<Block> waiting_;
    int64_t waiting_bytes_ = 0, limit_ = 0;
};

inline Blocks& blocks() {
    static Blocks* all = new Blocks;  // never destroyed: tensors may outlive this library's statics
    return *all;
}

}  // namespace normkit
