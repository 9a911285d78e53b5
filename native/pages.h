// Huge pages for big fresh outputs: a fresh mapping costs a page fault for every 4 KB, as much as the arithmetic.
//
// Advice only: whole 2 MB pages inside the array are offered to the kernel, nothing is read or written, and where the
// system knows no such advice nothing happens. Memory that is mapped already is left as it is.
#pragma once
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace normkit {

constexpr int64_t kAdviseBytes = int64_t(8) << 20;

inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    if (data == nullptr || bytes < kAdviseBytes) return;
    constexpr uintptr_t kHuge = uintptr_t(2) << 20;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kHuge * kHuge;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace normkit
