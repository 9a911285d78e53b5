// Norms with a scale and a shift for each element after them, as plain structs.
#pragma once
#include <cstdint>

#include "view.h"

namespace normkit {

// z = scale * ((x - mean) * rstd * weight + bias) + shift, over `sets` that lie one after the other in memory, each of
// `segments` of `length` elements, with statistics of its own. x, scale, shift: of all elements, in one dtype.
//
// Channels: a segment is a plane; weight, bias: (period * segments,), one each; a sample has `period` sets.
// rows: a set is a row, one segment; weight, bias: (length,). rms: no mean.
struct ElementCall {
    int dtype = kFloat32;
    int64_t sets = 0, period = 1, segments = 1, length = 0;
    bool rows = false, rms = false;
    const void *x = nullptr, *scale = nullptr;
    Param weight, bias;
};

struct ElementForward : ElementCall {
    const void* shift = nullptr;
    void* z = nullptr;
    Param mean, var;          // given statistics, (period,); absent: computed from x
    double* stats = nullptr;  // (3, sets): mean, biased variance, rstd
    double eps = 0.0;
};

struct ElementBackward : ElementCall {
    const void* dz = nullptr;
    const double* stats = nullptr;
    void *dx = nullptr, *dscale = nullptr;
    MutableParam dweight, dbias;
    bool training = true;  // false: the statistics are constants
};

}  // namespace normkit
