"""How far a result may lie from float64, and the comparisons that hold it there.

The bounds are the contract of the project: element by element, proportional to what is being summed, never a flat
absolute number. u is the unit roundoff of the dtype of the result: 2^-24 for float32, 2^-53 for float64. Everything
passed in beside the result is float64, computed by `normkit.reference` from the very same (rounded) input.
A comparison raises AssertionError by itself; NaN fails it, also where the expected value is NaN, and so do two equal
infinities: a test about them says in its own words what it expects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MEAN_RELATIVE = 1e-7  # of max(|mean|, std), for |mean|/std <= 1e4; 1.7 u of float32: one rounding and little else
VAR_RELATIVE = 5e-7  # of var, same range; 8 u of float32


def unit_roundoff(dtype: torch.dtype) -> float:
    """u: half the distance from 1 to the next number of the dtype."""
    return torch.finfo(dtype).eps / 2


def underflow(dtype: torch.dtype) -> float:
    """One step of the subnormal grid: what any rounding may lose near 0, where relative bounds end."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def output_bound(xhat: Tensor, weight: Tensor | float, bias: Tensor | float, u: float) -> Tensor:
    """8u(|xhat*weight| + |bias|), for |mean|/std <= 1e6. weight and bias broadcast against xhat."""
    return 8 * u * (torch.as_tensor(xhat * weight).abs() + torch.as_tensor(bias).abs())


def input_gradient_bound(dxhat: Tensor, xhat: Tensor, rstd: Tensor, axes: Sequence[int], u: float) -> Tensor:
    """16u*rstd*(|dxhat| + |mean(dxhat)| + |xhat*mean(dxhat*xhat)|), the means over `axes`.

    dxhat = dy*weight; where the weight is one number per statistic (batch norm) this is the contract's
    16u*|weight|*rstd*(|dy| + |mean(dy)| + |xhat*mean(dy*xhat)|). For RMS norm the middle term is only slack.
    """
    axes = tuple(axes)
    mean_dxhat = dxhat.mean(axes, keepdim=True)
    mean_dxhat_xhat = (dxhat * xhat).mean(axes, keepdim=True)
    return 16 * u * rstd * (dxhat.abs() + mean_dxhat.abs() + (xhat * mean_dxhat_xhat).abs())


def parameter_gradient_bound(terms: Tensor, axes: Sequence[int], u: float) -> Tensor:
    """16u*sum|terms|: terms = dy*xhat for dweight, dy for dbias.

    Each term carries a few u (xhat: 8, the product: 1), sums are taken in float64 or in short blocks that are
    merged, and the result is rounded once. The axes are removed, so the bound has the parameter's shape.
    """
    return 16 * u * terms.abs().sum(tuple(axes))


def roundings_bound(function: Callable[[Tensor], Tensor], z: Tensor, u: float) -> Tensor:
    """What 8 roundings of z and 8 of the result do to function(z): for activations, and for their derivatives.

    8 is the contract's number for the norm's output, which z is. z: float64; the function must not cancel there.
    """
    step = 8 * u * z
    return 8 * u * function(z).abs() + (function(z + step) - function(z - step)).abs()


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor | float, what: str = "result") -> None:
    """Raise unless |actual - expected| <= bound + one subnormal step everywhere; name the worst element."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = (actual.detach().double() - expected.detach().double()).abs()
    allowed = torch.as_tensor(bound).detach().double().expand_as(error) + underflow(actual.dtype)
    bad = ~(error <= allowed)  # negated, so that NaN is bad
    if bad.any():
        worst = int(torch.where(error.isnan(), torch.inf, (error / allowed).nan_to_num(nan=0.0)).argmax())
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {error.numel()} values out of bounds; worst at {at}: "
            f"{actual[at].item()!r}, expected {expected[at].item()!r}, error {error[at].item():.3g}, "
            f"allowed {allowed[at].item():.3g}"
        )


def assert_statistics(mean: Tensor, var: Tensor, mean64: Tensor, var64: Tensor) -> None:
    """Raise unless mean and (biased or not, as given) var hold the contract's bounds for |mean|/std <= 1e4."""
    assert_within(mean, mean64, MEAN_RELATIVE * torch.maximum(mean64.abs(), var64.sqrt()), "mean")
    assert_within(var, var64, VAR_RELATIVE * var64, "var")


def assert_same(actual: Tensor, expected: Tensor, what: str = "result") -> None:
    """Raise unless both have the same dtype, shape and bits (0 and -0 are equal); NaN fails."""
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
    assert_within(actual, expected, -underflow(actual.dtype), what)


def assert_equal64(actual: Tensor, expected: Tensor, what: str = "result", factor: float = 1e4) -> None:
    """Raise unless two float64 ways to one value agree to factor * 2^-53 of the largest value.

    1e4 roundings cover sums of a few hundred terms, each of a dozen operations, in two different orders.
    """
    scale = expected.detach().abs().max().item() if expected.numel() else 0.0
    assert_within(actual, expected, factor * unit_roundoff(torch.float64) * max(scale, 1.0), what)
