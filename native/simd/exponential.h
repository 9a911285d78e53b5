// e^x and e^x - 1 for x <= 0, on vectors of floats and of doubles. All smooth activations are made of e^-|z|: it never
// overflows, and nothing cancels in what they do with it.
//
// Floats: x = k ln2 + r, |r| <= ln2 / 2 (k ln2 in two parts, the first product exact), e^r - 1 = r + r^2 p(r) with p of
// degree 4, 0.05 u off; then times 2^k. r is off by its own rounding, u |r|, e^r - 1 by about twice that, and 1 + (e^r - 1),
// or 2^k (e^r - 1) + (2^k - 1), is rounded once: both functions within 1 ulp, subnormal results too (every 997th float:
// 0.97 and 0.91 at most). Doubles: the C library's, lane by lane.
#pragma once
#include <cmath>

#include "simd/lanes.h"
#include "simd/simd.h"

namespace normkit {
namespace NK_ISA {

template <class F> NK_INLINE double2 each_lane(double2 x, F&& f) {
    double t[2 * kDoubles];
    store2(t, x);
    for (double& v : t) v = f(v);
    return load2(t);
}

constexpr float kUnderflow = -104.0f;  // e^x is 0 in float from here on down
constexpr float kShifter =
    12583103.0f;  // 1.5 * 2^23 + 191: the low bits of x + kShifter hold the integer next to x, + 191

#if NK_LEVEL == 2
NK_INLINE vf times_power(vf v, vf, vf k) { return _mm512_scalef_ps(v, k); }
#else
// v * 2^k, -191 < k <= 0, in two steps: only the second one rounds, where the result is subnormal. shifted = k + kShifter.
NK_INLINE vf times_power(vf v, vf shifted, vf) { return v * power_from(shifted) * set1(0x1p-64f); }
#endif

struct Reduced {
    vf shifted, k, r;
};  // x = k ln2 + r

// x in [-113, 0]
NK_INLINE Reduced reduce(vf x) {
    const vf shifter = set1(kShifter), shifted = fma(x, set1(1.44269504f), shifter), k = shifted - shifter;
    const vf high = fma(k, set1(-0.693359375f), x);  // exact: 355 / 512 times 8 bits
    return {shifted, k, fma(k, set1(2.12194440e-4f), high)};
}

NK_INLINE vf expm1_near_zero(vf r) {
    vf p = set1(0.0013814142f);
    p = fma(p, r, set1(0.0083687622f));
    p = fma(p, r, set1(0.0416683964f));
    p = fma(p, r, set1(0.1666651964f));
    p = fma(p, r, set1(0.4999999404f));
    return fma(p * r, r, r);
}

NK_INLINE vf exp_of(const Reduced& x) { return times_power(expm1_near_zero(x.r) + set1(1.0f), x.shifted, x.k); }
NK_INLINE vf exp_negative(vf x) { return exp_of(reduce(at_least(x, set1(kUnderflow)))); }
NK_INLINE double2 exp_negative(double2 x) {
    return each_lane(x, [](double v) { return std::exp(v); });
}

NK_INLINE vf expm1_negative(vf x) {
    const Reduced to = reduce(at_least(x, set1(kUnderflow)));
    const vf power = times_power(set1(1.0f), to.shifted, to.k);
    return fma(power, expm1_near_zero(to.r), power - set1(1.0f));
}
NK_INLINE double2 expm1_negative(double2 x) {
    return each_lane(x, [](double v) { return std::expm1(v); });
}

// The standard normal distribution: its tail below x <= 0, and its density there.
template <class T> struct Normal {
    typename Num<T>::V tail, density;
};

// tail(-a) = e^(-a^2/2) R(a) with R rational, 0.1 u off, all terms positive: relative errors stay small as the tail
// goes to 0. a^2 is kept in two parts where fma is one rounding; where it is two, e^(-a^2/2) is off by a^2/2 u, which is
// half of what a rounding of a does to it.
NK_INLINE Normal<float> normal(vf x) {
    x = at_least(x, set1(-14.5f));  // beyond it both are 0 in float
    const vf half = x * set1(0.5f), square = half * x;
    Reduced to = reduce(set1(0.0f) - square);
    to.r = to.r - fma(half, x, set1(0.0f) - square);
    const vf e = exp_of(to);
    vf p = set1(0.0041160728f), q = set1(-0.0103173451f);
    p = fma(p, x, set1(-0.0406317152f)), q = fma(q, x, set1(0.1018550545f));
    p = fma(p, x, set1(0.1832307726f)), q = fma(q, x, set1(-0.4694590867f));
    p = fma(p, x, set1(-0.4382892847f)), q = fma(q, x, set1(1.2024853230f));
    p = fma(p, x, set1(0.5f)), q = fma(q, x, set1(-1.6744635105f));
    q = fma(q, x, set1(1.0f));
    return {e * (p / q), e * set1(0.3989422804f)};
}
NK_INLINE Normal<double> normal(double2 x) {
    return {each_lane(x, [](double v) { return 0.5 * std::erfc(v * -0.70710678118654752); }),
            each_lane(x, [](double v) { return 0.39894228040143268 * std::exp(-0.5 * v * v); })};
}

}  // namespace NK_ISA
}  // namespace normkit
