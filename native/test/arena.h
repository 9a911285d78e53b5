// Arrays that end (or begin) exactly at a page that may not be touched: one byte read or written outside is a fault, also
// by vector instructions that no sanitizer instruments.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

// Whole pages of at least so many bytes between two pages that may not be touched.
class Fenced {
  public:
    explicit Fenced(size_t bytes) : page_(page_size()), body_((bytes + page_ - 1) / page_ * page_) {
#if defined(_WIN32)
        base_ = static_cast<char*>(VirtualAlloc(nullptr, length(), MEM_RESERVE, PAGE_NOACCESS));
        const bool made = base_ != nullptr && VirtualAlloc(begin(), body_, MEM_COMMIT, PAGE_READWRITE) != nullptr;
#else
        base_ = static_cast<char*>(mmap(nullptr, length(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        const bool made = base_ != MAP_FAILED && mprotect(begin(), body_, PROT_READ | PROT_WRITE) == 0;
#endif
        if (!made) {
            std::fputs("no memory between forbidden pages\n", stderr);
            std::exit(2);
        }
    }
    Fenced(const Fenced&) = delete;
    Fenced& operator=(const Fenced&) = delete;
    ~Fenced() {
#if defined(_WIN32)
        VirtualFree(base_, 0, MEM_RELEASE);
#else
        munmap(base_, length());
#endif
    }

    char* begin() const { return base_ + page_; }
    char* end() const { return begin() + body_; }

  private:
    static size_t page_size() {
#if defined(_WIN32)
        SYSTEM_INFO info;
        GetSystemInfo(&info);
        return info.dwPageSize;
#else
        return size_t(sysconf(_SC_PAGESIZE));
#endif
    }
    size_t length() const { return body_ + 2 * page_; }

    size_t page_, body_;
    char* base_ = nullptr;
};

template <class T> class Guarded {
  public:
    // at_end: the array's last byte lies before the forbidden page; otherwise its first byte lies after one.
    Guarded(int64_t count, bool at_end)
        : count_(count), memory_(size_t(count) * sizeof(T)),
          data_(reinterpret_cast<T*>(at_end ? memory_.end() - size_t(count) * sizeof(T) : memory_.begin())) {}

    T* data() { return data_; }
    int64_t size() const { return count_; }
    T& operator[](int64_t i) { return data_[i]; }

  private:
    int64_t count_;
    Fenced memory_;
    T* data_;
};
