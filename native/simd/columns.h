// The constants of many channels at once: statistics from sums, y from statistics, dx from the sums of the backward.
//
// The formulas of moments.h, a vector of channels at a time: one channel after the other, the square roots and divisions
// of 2048 channels take as long as a sweep over a 7x7 map. Arrays are padded(C) long, so no vector has a tail; what lies
// after channel C is computed and never read.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "moments.h"
#include "simd/lanes.h"
#include "simd/simd.h"
#include "view.h"

namespace normkit {
namespace NK_ISA {

using normkit::finish;  // the forms of one channel stay visible next to those of a vector
using normkit::median_of_three;
using normkit::rstd_of;
using normkit::unscaled;
using normkit::write_statistics;

constexpr int64_t padded(int64_t c) { return (c + kLanes - 1) / kLanes * kLanes; }

NK_INLINE void store_as(double* p, double2 v) { store2(p, v); }
NK_INLINE void store_as(float* p, double2 v) { store(p, join(v.a, v.b)); }
NK_INLINE double2 both_halves(double v) { return {set1(v), set1(v)}; }
template <class V> NK_INLINE V smaller(V x, V y) { return select(greater(x, y), y, x); }
template <class V> NK_INLINE V larger(V x, V y) { return select(greater(x, y), x, y); }
// V: double2 or vd.
template <class V> NK_INLINE V median_of_three(V a, V b, V c) {
    return larger(smaller(a, b), smaller(larger(a, b), c));
}

NK_INLINE double2 rstd_of(double2 var, double eps) {
    double t[kLanes];
    store2(t, var + both_halves(eps));
    for (double& v : t) v = std::sqrt(v);
    return both_halves(1.0) / load2(t);
}

NK_INLINE double2 unscaled(double2 dot, double2 rstd) { return dot / at_least(rstd, both_halves(double(kLeastRstd))); }

// Parameters of channels, one at a time.
inline __attribute__((noinline)) double2 gather_param(const Param& p, int64_t first, int64_t channels, double absent) {
    double t[kLanes];
    for (int i = 0; i < kLanes; ++i) t[i] = first + i < channels ? p.at(first + i, absent) : absent;
    return load2(t);
}
inline __attribute__((noinline)) void scatter_param(const MutableParam& p, int64_t first, int64_t channels, double2 v) {
    double t[kLanes];
    store2(t, v);
    for (int64_t i = 0; i < std::min<int64_t>(kLanes, channels - first); ++i) p.put(first + i, t[i]);
}

// A parameter of channels [first, first + kLanes), as far as they exist.
NK_INLINE double2 param_at(const Param& p, int64_t first, int64_t channels, double absent) {
    if (p.data == nullptr) return both_halves(absent);
    if (p.dtype == kFloat32 && first + kLanes <= channels) return load_wide(static_cast<const float*>(p.data) + first);
    return gather_param(p, first, channels, absent);
}

NK_INLINE void put_param(const MutableParam& p, int64_t first, int64_t channels, double2 v) {
    if (p.data == nullptr) return;
    if (p.dtype == kFloat32 && first + kLanes <= channels) return store_as(static_cast<float*>(p.data) + first, v);
    scatter_param(p, first, channels, v);
}

NK_INLINE void store_head(double* p, double2 v, int64_t n) {
    if (n >= kLanes) return store2(p, v);
    Num<double>::put_tail(p, v, n);
}
NK_INLINE double2 load_head(const double* p, int64_t n) {
    return n >= kLanes ? load2(p) : Num<double>::get_tail(p, n, both_halves(1.0));
}

// Statistics of kLanes channels.
struct Statistics2 {
    double2 mean, var, rstd;
};

inline Statistics2 finish(double2 sum, double2 squares, double2 shift, int64_t count, double eps) {
    const double2 m = both_halves(double(count)), first = sum / m;
    double2 var = squares / m - first * first;
    var = select(greater(both_halves(0.0), var), select(greater(var, var), var, both_halves(0.0)), var);  // NaN passes
    return {shift + first, var, rstd_of(var, eps)};
}

// Statistics that are given, of kLanes channels from `first` on.
inline Statistics2 given_statistics(const Param& mean, const Param& var, int64_t first, int64_t channels, double eps) {
    const double2 v = param_at(var, first, channels, 1.0);
    return {param_at(mean, first, channels, 0.0), v, rstd_of(v, eps)};
}

// Of the channels from `first` on that lie before `last`; stats: (3, C), may be null.
inline void write_statistics(double* stats, int64_t first, int64_t last, int64_t channels, const Statistics2& s) {
    if (stats == nullptr) return;
    store_head(stats + first, s.mean, last - first);
    store_head(stats + channels + first, s.var, last - first);
    store_head(stats + 2 * channels + first, s.rstd, last - first);
}

// Per-channel constants for vector loads, each padded(C) long, carved from a piece of scratch memory.
template <class Scalar> struct Columns {
    Scalar *m, *scale, *shift, *rstd, *a, *b, *c;
    static constexpr int64_t doubles(int64_t channels) { return 7 * padded(channels); }
    Columns(double* memory, int64_t channels) {
        for (Scalar** field : {&m, &scale, &shift, &rstd, &a, &b, &c}) {
            *field = reinterpret_cast<Scalar*>(memory);
            memory += padded(channels);
        }
    }

    Columns from(int64_t channel) const {
        Columns later = *this;
        for (Scalar** field : {&later.m, &later.scale, &later.shift, &later.rstd, &later.a, &later.b, &later.c})
            *field += channel;
        return later;
    }

    // The lanes after the last channel are computed with, and what an earlier call left there may be subnormal, which takes
    // a processor a hundred times as long. Vectors of pairs (pairs.h) reach furthest.
    void clear_behind(int64_t channels) const {
        constexpr int64_t kVector = sizeof(Scalar) == sizeof(float) ? 2 * kLanes : kLanes;
        const int64_t end = (channels + kVector - 1) / kVector * kVector;
        for (Scalar* field : {m, scale, shift, rstd, a, b, c}) std::fill(field + channels, field + end, Scalar(0));
    }

    void set_affine(int64_t i, double2 mean, double2 rstd_, double2 weight, double2 bias) const {
        const double2 factor = weight * rstd_;
        store_as(m + i, mean);
        store_as(scale + i, factor);
        store_as(shift + i, bias - (mean - load_wide(m + i)) * factor);
    }
    // S dz * xhat from dot = S dz * (x - m).
    double2 center(int64_t i, double2 mean, double2 rstd_, double2 total, double2 dot) const {
        return dot * rstd_ - (mean - load_wide(m + i)) * rstd_ * total;
    }
    // weight: of the channel; dz, dz_xhat: the sums over the statistic's values, times -1 / count.
    void set_slope(int64_t i, double2 mean, double2 rstd_, double2 weight, double2 dz, double2 dz_xhat) const {
        store_as(a + i, weight * rstd_);
        const double2 slope = rstd_ * dz_xhat;
        store_as(b + i, slope);
        store_as(c + i, rstd_ * dz - slope * rstd_ * (mean - load_wide(m + i)));
    }
};

}  // namespace NK_ISA
}  // namespace normkit
