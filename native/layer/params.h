// Parameters of many columns at once: their dtype is looked up once, not for each element.
#pragma once
#include <cstdint>
#include <type_traits>

#include "simd/columns.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

// f(elements) with the parameter's data as what it is.
template <class F> void with_elements(const void* data, int dtype, F&& f) {
    switch (dtype) {
        case kFloat64: return f(static_cast<const double*>(data));
        case kBFloat16: return f(static_cast<const bf16*>(data));
        case kFloat16: return f(static_cast<const f16*>(data));
        default: return f(static_cast<const float*>(data));
    }
}

// to[j] = the parameter of column j, in the computing type, for columns [first, last).
template <class Scalar> void expand(const Param& p, double absent, int64_t first, int64_t last, Scalar* to) {
    if (p.data == nullptr) return std::fill(to + first, to + last, Scalar(absent));
    with_elements(p.data, p.dtype, [&](auto from) {
        int64_t j = first;
        for (; j + kLanes <= last; j += kLanes) store_as(to + j, load_wide(from + j));
        for (; j < last; ++j) to[j] = Scalar(value_of(from[j]));
    });
}

NK_INLINE void put_as(double* to, double2 v) { store2(to, v); }
template <class P> NK_INLINE void put_as(P* to, double2 v) { store(to, join(v.a, v.b)); }

// The parameter of column j = from[j], for columns [first, last).
inline void put_columns(const MutableParam& p, int64_t first, int64_t last, const double* from) {
    if (p.data == nullptr) return;
    with_elements(p.data, p.dtype, [&](auto data) {
        auto to = const_cast<std::remove_const_t<std::remove_pointer_t<decltype(data)>>*>(data);
        int64_t j = first;
        for (; j + kLanes <= last; j += kLanes) put_as(to + j, load2(from + j));
        for (; j < last; ++j) p.put(j, from[j]);
    });
}

}  // namespace NK_ISA
}  // namespace normkit
