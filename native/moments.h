// Sums of one stretch of a statistic, and their merge: the C++ face of the project's mergeable moments.
//
// Shifted sums: sum = S(x - k), squares = S(x - k)^2 in double, with k near the data. Stretches of one channel share k,
// so merging is adding, in a fixed order. k is the median of three elements: one outlier cannot spoil it, and
// mean >> std costs nothing.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace normkit {

struct Sums {
    double sum = 0.0, squares = 0.0;
    void add(Sums other) { sum += other.sum; squares += other.squares; }
};

struct Statistics {
    double mean, var, rstd;
};

inline double median_of_three(double a, double b, double c) {
    return std::max(std::min(a, b), std::min(std::max(a, b), c));
}

inline double rstd_of(double var, double eps) { return 1.0 / std::sqrt(var + eps); }

inline Statistics finish(Sums sums, double shift, int64_t count, double eps) {
    double first = sums.sum / double(count);
    double var = sums.squares / double(count) - first * first;
    if (var < 0.0) var = 0.0;  // NaN passes
    return {shift + first, var, rstd_of(var, eps)};
}

inline void write_statistics(double* stats, int64_t c, int64_t channels, Statistics s) {
    if (stats == nullptr) return;
    stats[c] = s.mean;
    stats[channels + c] = s.var;
    stats[2 * channels + c] = s.rstd;
}

// y = fma(x - m, scale, shift) with constants from double: m is the mean rounded to the computing type and shift
// carries what the rounding lost, so that kappa = |mean| / std costs no digits.
template <class Scalar> struct Affine {
    Scalar m, scale, shift;
};

template <class Scalar> inline Affine<Scalar> affine(double mean, double rstd, double weight, double bias) {
    Scalar m = Scalar(mean);
    double scale = weight * rstd;
    return {m, Scalar(scale), Scalar(bias - (mean - double(m)) * scale)};
}

// dx = a * dz + b * ((x - m) * rstd) + c: the collapsed backward. total = S dz, dot = S dz * ((x - m) * rstd), rstd as
// rounded to the computing type. Scaling first keeps |x| ~ 1e30 from overflowing, and rstd^2 from underflowing.
template <class Scalar> struct Slope {
    Scalar a, b, c;
};

struct GradientSums {
    double dz, dz_xhat;  // sums over the statistic's values of dz and of dz * xhat
};

// S dz * (x - m) from S dz * xhat, xhat by this rstd. An infinite variance has the rstd 0, and the sum 0 stays 0.
constexpr float kLeastRstd = std::numeric_limits<float>::denorm_min();
inline double unscaled(double dot, double rstd) { return dot / std::max(rstd, double(kLeastRstd)); }

template <class Scalar> inline GradientSums center(double mean, double rstd, double total, double dot) {
    return {total, dot - (mean - double(Scalar(mean))) * rstd * total};
}

template <class Scalar>
inline Slope<Scalar> slope(double mean, double rstd, double weight, GradientSums sums, int64_t count) {
    double offset = mean - double(Scalar(mean));
    double a = weight * rstd;
    double b = -a * sums.dz_xhat / double(count);
    return {Scalar(a), Scalar(b), Scalar(-a * sums.dz / double(count) - b * rstd * offset)};
}

}  // namespace normkit
