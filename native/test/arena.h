// Arrays that end (or begin) exactly at a page that may not be touched: one byte read or written outside is a fault, also
// by vector instructions that no sanitizer instruments.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

template <class T> class Guarded {
  public:
    // at_end: the array's last byte lies before the forbidden page; otherwise its first byte lies after one.
    Guarded(int64_t count, bool at_end) : count_(count) {
        const auto page = size_t(sysconf(_SC_PAGESIZE));
        const size_t bytes = size_t(count) * sizeof(T), body = (bytes + page - 1) / page * page;
        length_ = body + 2 * page;
        base_ = static_cast<char*>(mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED || mprotect(base_ + page, body, PROT_READ | PROT_WRITE) != 0) {
            std::perror("mmap");
            std::exit(2);
        }
        data_ = reinterpret_cast<T*>(at_end ? base_ + page + body - bytes : base_ + page);
    }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() { munmap(base_, length_); }

    T* data() { return data_; }
    int64_t size() const { return count_; }
    T& operator[](int64_t i) { return data_[i]; }

  private:
    int64_t count_;
    size_t length_ = 0;
    char* base_ = nullptr;
    T* data_ = nullptr;
};
