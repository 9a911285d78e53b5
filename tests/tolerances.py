"""Comparisons with float64. The bounds are `normkit.contract`'s, or argued where a test needs another.

A comparison raises AssertionError by itself; NaN fails it, also where the expected value is NaN, and so do two equal
infinities: a test about them says in its own words what it expects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.contract import mean_bound, underflow, unit_roundoff, variance_bound


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
    assert_within(mean, mean64, mean_bound(mean64, var64), "mean")
    assert_within(var, var64, variance_bound(var64), "var")


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
