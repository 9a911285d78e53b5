// Rows of a block written as one run of whole vectors, and runs streamed by way of a stage.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "plan/planar_plan.h"
#include "simd/lanes.h"
#include "simd/pairs.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

// Whole vectors of kCount elements over `count` rows that follow each other in memory, after the `head` elements that come
// first, `length` >= kCount each: full(k, i) for the vector at i, part(k, i, n) for n < kCount elements there, with the
// constants k = make(row). Where a vector reaches into the next row, k is mixed: that row's constants in its lanes. Rows of
// 49 take 3.06 vectors of 16 this way instead of 4, and none lies across cache lines where memory is aligned at `head`.
template <int kCount, class Make, class Full, class Part>
NK_INLINE void for_flat(int64_t count, int64_t length, int64_t head, Make&& make, Full&& full, Part&& part) {
    auto k = make(0);
    if (head > 0) part(k, 0, head);
    int64_t i = head, end = length;
    for (int64_t row = 1; row < count; ++row, end += length) {
        for (; i + kCount <= end; i += kCount) full(k, i);
        auto next = make(row);
        if (i < end) {
            full(k.mixed((1u << (end - i)) - 1u, next), i);
            i += kCount;
        }
        k = next;
    }
    for (; i + kCount <= end; i += kCount) full(k, i);
    if (i < end) part(k, i, end - i);
}

// Elements up to the first whole vector of p.
template <class T> NK_INLINE int64_t up_to_aligned(const T* p) {
    constexpr uintptr_t kBytes = Num<InRow<T>>::kCount * sizeof(T);
    return int64_t((kBytes - reinterpret_cast<uintptr_t>(p) % kBytes) % kBytes / sizeof(T));
}

// One run of a block whose rows do not start at multiples of a vector, made in L1 and then streamed as whole lines.
constexpr int64_t kStage = 2 * kShortRow;  // elements: plan_planar keeps runs of short rows below it

template <class T> NK_INLINE void stream_run(T* to, const T* from, int64_t count) {
    constexpr int64_t kLine = kFloats * int64_t(sizeof(float)), kElements = kLine / int64_t(sizeof(T));
    const int64_t past = int64_t(reinterpret_cast<uintptr_t>(to) % kLine) / int64_t(sizeof(T));
    int64_t i = past == 0 ? 0 : std::min(count, kElements - past);
    std::memcpy(to, from, size_t(i) * sizeof(T));
    for (; i + kElements <= count; i += kElements)
        stream(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
    std::memcpy(to + i, from + i, size_t(count - i) * sizeof(T));
}

}  // namespace NK_ISA
}  // namespace normkit
