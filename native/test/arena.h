// Arrays that end (or begin) exactly at a page that may not be touched: one byte read or written outside is a fault, also
// by vector instructions that no sanitizer instruments.
#pragma once
#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>

// Memory of the system: pages that may not be touched, some of which are opened.
#if defined(_WIN32)
inline size_t page_bytes() {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}
inline char* closed_pages(size_t bytes) {
    return static_cast<char*>(VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_NOACCESS));
}
inline bool open_pages(char* first, size_t bytes) {
    DWORD before;
    return VirtualProtect(first, bytes, PAGE_READWRITE, &before) != 0;
}
inline void free_pages(char* first, size_t) { VirtualFree(first, 0, MEM_RELEASE); }
#else
inline size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }
inline char* closed_pages(size_t bytes) {
    void* first = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return first == MAP_FAILED ? nullptr : static_cast<char*>(first);
}
inline bool open_pages(char* first, size_t bytes) { return mprotect(first, bytes, PROT_READ | PROT_WRITE) == 0; }
inline void free_pages(char* first, size_t bytes) { munmap(first, bytes); }
#endif

template <class T> class Guarded {
  public:
    // at_end: the array's last byte lies before the forbidden page; otherwise its first byte lies after one.
    Guarded(int64_t count, bool at_end) : count_(count) {
        const size_t page = page_bytes(), bytes = size_t(count) * sizeof(T), body = (bytes + page - 1) / page * page;
        length_ = body + 2 * page;
        base_ = closed_pages(length_);
        if (base_ == nullptr || !open_pages(base_ + page, body)) {
            std::perror("memory between closed pages");
            std::exit(2);
        }
        data_ = reinterpret_cast<T*>(at_end ? base_ + page + body - bytes : base_ + page);
    }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() { free_pages(base_, length_); }

    T* data() { return data_; }
    int64_t size() const { return count_; }
    T& operator[](int64_t i) { return data_[i]; }

  private:
    int64_t count_;
    size_t length_ = 0;
    char* base_ = nullptr;
    T* data_ = nullptr;
};
