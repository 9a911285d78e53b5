"""Activations and their derivatives on float32 values in registers; the formulas of native/simd/smooth.h.

They are made of exp(-|z|): nothing overflows, and no two large terms cancel, save in the tail of gelu, where 1 + erf
loses up to one rounding of 1. NaN passes, as in torch. `code` is that of normkit's activations. `param` comes in
float32, or in float64 as inductor hands numbers over, and is cast where it is used.
"""

import triton
import triton.language as tl

from ... import _activation

RELU: tl.constexpr = tl.constexpr(_activation.RELU)
LEAKY_RELU: tl.constexpr = tl.constexpr(_activation.LEAKY_RELU)
RELU6: tl.constexpr = tl.constexpr(_activation.RELU6)
SILU: tl.constexpr = tl.constexpr(_activation.SILU)
GELU: tl.constexpr = tl.constexpr(_activation.GELU)
GELU_TANH: tl.constexpr = tl.constexpr(_activation.GELU_TANH)
SIGMOID: tl.constexpr = tl.constexpr(_activation.SIGMOID)
TANH: tl.constexpr = tl.constexpr(_activation.TANH)
HARDSWISH: tl.constexpr = tl.constexpr(_activation.HARDSWISH)
HARDSIGMOID: tl.constexpr = tl.constexpr(_activation.HARDSIGMOID)
ELU: tl.constexpr = tl.constexpr(_activation.ELU)
MISH: tl.constexpr = tl.constexpr(_activation.MISH)

ROOT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
ROOT_2_PI: tl.constexpr = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
BENT: tl.constexpr = tl.constexpr(1.5957691216057308)  # 2 sqrt(2 / pi)
CUBIC: tl.constexpr = tl.constexpr(0.044715)


@triton.jit
def _between_0_and_6(z):
    return tl.where(z <= 0, 0.0, tl.where(z >= 6, 6.0, z))


@triton.jit
def _expm1_negative(n):
    """e^n - 1 for n <= 0: Taylor's series where the subtraction would cancel (its next term is 2^-26 of the first)."""
    series = 1.0 + n * 0.125
    series = 1.0 + n * 0.1428571429 * series
    series = 1.0 + n * 0.1666666667 * series
    series = 1.0 + n * 0.2 * series
    series = 1.0 + n * 0.25 * series
    series = 1.0 + n * 0.3333333333 * series
    series = 1.0 + n * 0.5 * series
    return tl.where(n > -0.5, n * series, tl.exp(n) - 1.0)


@triton.jit
def _logistic(z):
    """The logistic function of z, and of -z."""
    e = tl.exp(-tl.abs(z))
    high = 1.0 / (1.0 + e)
    low = e * high
    return tl.where(z <= 0, low, high), tl.where(z <= 0, high, low)


@triton.jit
def _bent(z):
    """What gelu's tanh form takes the logistic function of."""
    return (z + z * z * z * CUBIC) * BENT  # a constant on the left is no tensor to the interpreter


@triton.jit
def activate(z, param, code: tl.constexpr):
    """activation(z)."""
    if code == RELU:
        return tl.where(z <= 0, 0.0, z)
    elif code == LEAKY_RELU:
        return tl.where(z <= 0, z * tl.cast(param, tl.float32), z)
    elif code == RELU6:
        return _between_0_and_6(z)
    elif code == SILU:
        value, _ = _logistic(z)
        return z * value
    elif code == GELU:
        return z * (0.5 + 0.5 * tl.erf(z * ROOT_HALF))
    elif code == GELU_TANH:
        value, _ = _logistic(_bent(z))
        return z * value
    elif code == SIGMOID:
        value, _ = _logistic(z)
        return value
    elif code == TANH:
        t = _expm1_negative(-2.0 * tl.abs(z))
        high = t / (2.0 + t)
        return tl.where(z <= 0, high, -high)
    elif code == HARDSWISH:
        return z * _between_0_and_6(z + 3.0) * (1.0 / 6.0)
    elif code == HARDSIGMOID:
        return _between_0_and_6(z + 3.0) * (1.0 / 6.0)
    elif code == ELU:
        return tl.where(z <= 0, tl.cast(param, tl.float32) * _expm1_negative(tl.where(z <= 0, z, 0.0)), z)
    elif code == MISH:
        m, rest = _mish_terms(z)
        return z * m / (m + rest)
    else:
        return z


@triton.jit
def _mish_terms(z):
    """m = (1 + e^z)^2 - 1 and 2, both times e^-2z for positive z: tanh(softplus(z)) is m / (m + 2)."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z <= 0, 2.0 * e + e * e, 2.0 * e + 1.0), tl.where(z <= 0, 2.0, 2.0 * e * e)


@triton.jit
def _slope(z, param, code: tl.constexpr):
    """The derivative of a smooth activation at z."""
    if code == SILU:
        value, rest = _logistic(z)
        return value * (1.0 + z * rest)
    elif code == GELU:
        return 0.5 + 0.5 * tl.erf(z * ROOT_HALF) + z * (tl.exp(-0.5 * z * z) * ROOT_2_PI)
    elif code == GELU_TANH:
        near = tl.where(z < -10.8, -10.8, z)  # there it has fallen to 0
        value, rest = _logistic(_bent(near))
        return value * (1.0 + near * BENT * (1.0 + near * near * CUBIC * 3.0) * rest)
    elif code == SIGMOID:
        value, rest = _logistic(z)
        return value * rest
    elif code == TANH:
        value, rest = _logistic(2.0 * z)
        return 4.0 * value * rest
    elif code == ELU:
        return tl.where(z <= 0, tl.cast(param, tl.float32) * tl.exp(tl.where(z <= 0, z, 0.0)), 1.0)
    else:  # MISH
        e = tl.exp(-tl.abs(z))
        m, rest = _mish_terms(z)
        w = 1.0 / (m + rest)
        g = 4.0 * tl.where(z <= 0, e, e * e) * (1.0 + e)
        return (z * g * w + m) * w


@triton.jit
def is_open(z, code: tl.constexpr):
    """Where a piecewise linear activation has the slope 1: the bit that a forward keeps. NaN passes."""
    opened = z > 0
    if code == RELU6:
        opened = opened & (z < 6)
    return opened | (z != z)


@triton.jit
def through_gate(dy, opened, param, code: tl.constexpr):
    """dy behind a piecewise linear activation. A zero slope selects: an infinite dy stays out."""
    if code == LEAKY_RELU:
        gradient = tl.where(opened, dy, dy * tl.cast(param, tl.float32))
    else:
        gradient = tl.where(opened, dy, 0.0)
    return gradient


@triton.jit
def activation_gradient(dy, z, param, code: tl.constexpr):
    """dy times the derivative at z."""
    if code == 0:
        return dy
    elif code == RELU or code == LEAKY_RELU or code == RELU6:
        return through_gate(dy, is_open(z, code), param, code)
    elif code == HARDSWISH:
        return tl.where(z <= -3, 0.0, tl.where(z >= 3, dy, dy * (z * (1.0 / 3.0) + 0.5)))
    elif code == HARDSIGMOID:
        return tl.where((z <= -3) | (z >= 3), 0.0, dy * (1.0 / 6.0))
    else:
        return dy * _slope(z, param, code)
