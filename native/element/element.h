// What both directions of a modulation per element share: its tensors, parameters in the computing type, tasks.
#pragma once
#include <algorithm>
#include <cstdint>

#include "element_view.h"
#include "plan/rows_plan.h"
#include "plan/streams.h"
#include "simd/columns.h"
#include "simd/lanes.h"

namespace normkit {
namespace NK_ISA {

// A parameter beside the elements of a segment: `at(j)` is that of element j, or of all.
template <class Scalar> struct Beside {
    const Scalar* from;
    int64_t mask;  // -1: one for each element; 0: one for all, kLanes times
    const Scalar* at(int64_t j) const { return from + (j & mask); }
};

template <class T> struct ElementSets {
    using N = Num<T>;
    using V = typename N::V;
    using Scalar = typename N::Scalar;

    const ElementCall& a;
    const T *x, *scale;
    const int64_t size, parameters, wide;  // elements of a set; of weight and bias, and padded

    explicit ElementSets(const ElementCall& a_)
        : a(a_), x(static_cast<const T*>(a_.x)), scale(static_cast<const T*>(a_.scale)), size(a_.segments * a_.length),
          parameters(a_.rows ? a_.length : a_.period * a_.segments), wide(padded(parameters)) {}

    // Weight and bias in the computing type; memory: 2 * wide doubles.
    struct Parameters {
        const Scalar *weight, *bias;
    };
    Parameters parameters_in(double* memory) const {
        Scalar *weight = reinterpret_cast<Scalar*>(memory), *bias = weight + wide;
        for (int64_t j = 0; j < parameters; j += kLanes) {
            store_as(weight + j, param_at(a.weight, j, parameters, 1.0));
            store_as(bias + j, param_at(a.bias, j, parameters, 0.0));
        }
        return {weight, bias};
    }
    // Which parameter segment `i` of a set has, where segments have one each.
    int64_t parameter_of(int64_t set, int64_t i) const { return set % a.period * a.segments + i; }
    // of: a parameter of all; repeated: kLanes elements.
    Beside<Scalar> beside(const Scalar* of, int64_t set, int64_t i, Scalar* repeated) const {
        if (a.rows) return {of, -1};
        std::fill(repeated, repeated + kLanes, of[parameter_of(set, i)]);
        return {repeated, 0};
    }

    bool streams(const T* to) const {
        return outgrows_cache(a.sets * size * int64_t(sizeof(T))) && a.length % kLanes == 0 && aligned_for_stream(to);
    }
    // Blocks of sets, by the shape alone. least: sets of a block.
    RowsPlan plan(int64_t least) const { return plan_rows(a.sets, std::max<int64_t>(size, 64), least); }
};

}  // namespace NK_ISA
}  // namespace normkit
