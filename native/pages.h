// Huge pages for big fresh outputs: a fresh mapping costs a page fault for every 4 KB, as much as the arithmetic.
//
// Advice only, about the whole 2 MB pages inside an array: no value is changed, and where the system knows no such advice
// nothing happens.
#pragma once
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace normkit {

constexpr int64_t kAdviseBytes = int64_t(8) << 20;   // below, allocators hand out mapped memory (tried: huge-pages)
constexpr uintptr_t kHugePage = uintptr_t(2) << 20;  // of x86-64, and the usual one of 64-bit ARM

// Asks for huge pages before the first write. Memory that is mapped already is left as it is.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    if (data == nullptr || bytes < kAdviseBytes) return;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kHugePage * kHugePage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace normkit
