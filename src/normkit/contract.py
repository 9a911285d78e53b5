"""The numeric contract: how far a result may lie from float64. docs/contract.md says it in words.

Every bound is element by element and proportional to what is being summed, never one absolute number. u is the unit
roundoff of the result's dtype: 2^-53 for float64, 2^-24 for float32, 2^-11 for float16, 2^-8 for bfloat16. What is
passed in is float64, computed by `normkit.reference` from the very same (rounded) input. kappa = |mean|/std of what one
statistic covers. To each bound a comparison adds `underflow`, where relative bounds end.

The tests hold every kernel to these bounds, and `normkit bench` times nothing that breaks them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# 1.7 u of float32: a sum in float64 is rounded once (1 u); where pairs of bfloat16 are added in float32 first they lose
# 0.85e-7 at most (native/simd/short_sums.h).
MEAN_RELATIVE = 1e-7
# 8 u of float32: rounded once (1 u), and up to 6.5 u lost where four squares of bfloat16 are added in float32 first.
VAR_RELATIVE = 5e-7
# kappa up to which the bounds on statistics hold: even a float64 sum of squares without a shift loses no more than
# kappa^2 * 2^-53 = 1e-8 of the variance there.
KAPPA_STATISTICS = 1e4
# kappa up to which the bounds on outputs and gradients hold: 2^20, so a float32 input keeps 4 bits of its deviation.
KAPPA_OUTPUTS = 1e6
# Roundings of y: the result, the product with the weight, the sums with bias and residual (4), and a scale whose
# variance may be 8 u off, which halves under the root (4).
OUTPUT_ROUNDINGS = 8
# 16 roundings of a mean in float64, or of a deviation from it: a mask's mean may carry 8 (kernels/native_masked.py), a
# group's mean of its channels' means has a few.
CENTERING = 2.0**-49
# Roundings of a gradient: its terms are made of xhat, which is as far off as y (8), and are scaled, averaged and
# summed like y (8).
GRADIENT_ROUNDINGS = 16
# What the two averages of dx lose where their terms cancel, as a share of the terms' magnitudes: 1/1024 of u. 16-bit
# terms are added in float32 a few at a time, 7 * 2^-24 (native/simd/short_sums.h): u / 1024 of float16, bfloat16 less.
# Terms of float32 are added in float64, 2^-53 for each addition that a term goes through: 2^19 of them.
SUMS_RELATIVE = 2.0**-10
# float64 has no wider type to add in, nor has the truth that it is measured against: 64 of its roundings at least.
SUMS_LEAST = 2.0**-47


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: half the distance from 1 to the next number of the dtype."""
    return torch.finfo(dtype).eps / 2


def underflow(dtype: torch.dtype) -> float:
    """One step of the subnormal grid: what any rounding may lose near 0."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def mean_bound(mean: Tensor, var: Tensor) -> Tensor:
    """1e-7 max(|mean|, std), for kappa <= 1e4: the mean of a channel, and the running mean one batch moved it to.

    mean, var: (C,), or one number per statistic.
    """
    return MEAN_RELATIVE * torch.maximum(mean.abs(), var.sqrt())


def variance_bound(var: Tensor) -> Tensor:
    """5e-7 var, for kappa <= 1e4; biased or unbiased, as given."""
    return VAR_RELATIVE * var


def output_bound(
    xhat: Tensor, weight: Tensor | float, bias: Tensor | float, u: float, residual: Tensor | float = 0.0
) -> Tensor:
    """8u(|xhat*weight| + |bias| + |residual|), for kappa <= 1e6.

    weight, bias and residual broadcast against xhat. A piecewise linear activation of slope 1 or less keeps it.
    """
    added = torch.as_tensor(bias).abs() + torch.as_tensor(residual).abs()
    return OUTPUT_ROUNDINGS * u * ((xhat * weight).abs() + added)


def centering_bound(input: Tensor, rstd: Tensor, weight: Tensor | float) -> Tensor:
    """2^-49 |weight| (1 + min(|input|*rstd, 1e6)): what a mean that is rounded to float64 adds to `output_bound`.

    It is seen where input is the mean but for a thousandth of the standard deviation, as its relative bound ends there.
    """
    return CENTERING * torch.as_tensor(weight).abs() * (1 + (input.abs() * rstd).clamp(max=KAPPA_OUTPUTS))


def input_gradient_bound(
    dxhat: Tensor, xhat: Tensor, rstd: Tensor, mean: Callable[[Tensor], Tensor], u: float
) -> Tensor:
    """16u*rstd*(|dxhat| + |mean(dxhat)| + |xhat*mean(dxhat*xhat)|) and what the sums behind the two means lose,
    u/1024*rstd*(mean|dxhat| + |xhat|*mean|dxhat*xhat|); for kappa <= 1e6.

    dxhat = dy*weight: with one weight per statistic, as in batch norm, |weight| stands before it all, and dy for dxhat.
    For RMS norm the terms of mean(dxhat) are slack.
    mean: the average over what one statistic covers, broadcast back; `mean_over(axes)` makes one.
    """
    scaled = dxhat * xhat
    terms = dxhat.abs() + mean(dxhat).abs() + (xhat * mean(scaled)).abs()
    sums = mean(dxhat.abs()) + xhat.abs() * mean(scaled.abs())
    return rstd * (GRADIENT_ROUNDINGS * u * terms + max(SUMS_RELATIVE * u, SUMS_LEAST) * sums)


def residual_gradient_bound(dz: Tensor, u: float) -> Tensor:
    """8u*|dz|: dz is the gradient of the activation's input."""
    return OUTPUT_ROUNDINGS * u * dz.abs()


def parameter_gradient_bound(terms: Tensor, axes: Sequence[int], u: float) -> Tensor:
    """16u*sum|terms|: terms = dy*xhat for dweight, dy for dbias. The axes are removed: the parameter's shape.

    Each term carries a few u (xhat 8, the product 1); sums are taken in float64 or in short blocks that are merged; the
    result is rounded once.
    """
    return GRADIENT_ROUNDINGS * u * terms.abs().sum(tuple(axes))


def mean_over(axes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """The average over `axes`, which stay with size 1."""
    return lambda tensor: tensor.mean(tuple(axes), keepdim=True)


def roundings_bound(function: Callable[[Tensor], Tensor], z: Tensor, u: float) -> Tensor:
    """What 8 roundings of z and 8 of the result do to function(z): for activations, and for their derivatives.

    z: a norm's output in float64, before the activation; the function must not cancel there.
    """
    step = OUTPUT_ROUNDINGS * u * z
    return OUTPUT_ROUNDINGS * u * function(z).abs() + (function(z + step) - function(z - step)).abs()


# Statistics in float32, as Triton's kernels keep them: the tree over a tile's 2^13 values and what merging the parts
# adds lose 16 roundings of float32, in units of the standard deviation; the mean itself is two floats, so nothing grows
# with kappa. The same holds of the sums behind a gradient, in units of the terms' magnitudes.
FLOAT32_STATISTICS = 2.0**-20


def float32_output_bound(xhat: Tensor, weight: Tensor | float) -> Tensor:
    """2^-20 |weight| (1 + |xhat|): what statistics in float32 add to `output_bound`."""
    return FLOAT32_STATISTICS * torch.as_tensor(weight).abs() * (1 + xhat.abs())


def float32_gradient_bound(
    dxhat: Tensor, xhat: Tensor, rstd: Tensor, mean: Callable[[Tensor], Tensor]
) -> Tensor:  # fmt: skip
    """2^-20*rstd*(|dxhat| + mean|dxhat| + (1 + |xhat|)*mean|dxhat*(1 + |xhat|)|): what they add to
    `input_gradient_bound`."""
    apart = 1 + xhat.abs()
    return FLOAT32_STATISTICS * rstd * (dxhat.abs() + mean(dxhat.abs()) + apart * mean(dxhat.abs() * apart))


def float32_parameter_bound(dz: Tensor, xhat: Tensor, axes: Sequence[int]) -> Tensor:
    """2^-20*sum(|dz|*(1 + |xhat|)): what they add to `parameter_gradient_bound`."""
    return FLOAT32_STATISTICS * (dz.abs() * (1 + xhat.abs())).sum(tuple(axes))
