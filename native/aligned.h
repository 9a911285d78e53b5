// Aligned memory of the C library, whose function for it has another name on each system.
#pragma once
#include <stdlib.h>
#include <cstdint>
#include <cstdlib>
#if defined(_WIN32)
#include <malloc.h>
#endif

namespace normkit {

// Null where there is no memory; free_aligned alone frees it. alignment: a power of two, of a pointer's size at least.
inline void* allocate_aligned(int64_t bytes, size_t alignment) {
#if defined(_WIN32)
    return _aligned_malloc(size_t(bytes), alignment);
#else
    void* data = nullptr;
    return posix_memalign(&data, alignment, size_t(bytes)) == 0 ? data : nullptr;
#endif
}

inline void free_aligned(void* data) {
#if defined(_WIN32)
    _aligned_free(data);
#else
    std::free(data);
#endif
}

}  // namespace normkit
