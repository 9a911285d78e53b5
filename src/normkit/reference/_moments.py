"""Mean and biased variance of a tensor over some axes, with an optional mask: the sums that every norm shares.

Rules: results keep their reduced axes (size 1), so that they broadcast against the input. `keep` is a bool tensor that
broadcasts to the input, True = a real value; None = every value is real. A value that is not kept is selected away,
never multiplied away, so that NaN and Inf under a mask cannot leak. A count of 0 counts as 1: all sums are 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def select(x: Tensor, keep: Tensor | None) -> Tensor:
    """x where it is kept, 0 elsewhere."""
    return x if keep is None else x.masked_fill(~keep, 0)


def total(x: Tensor, axes: Sequence[int], keep: Tensor | None = None) -> Tensor:
    """Sum of the kept values over `axes`."""
    return select(x, keep).sum(tuple(axes), keepdim=True)


def count(x: Tensor, axes: Sequence[int], keep: Tensor | None = None) -> Tensor:
    """m: how many values are kept over `axes`, at least 1."""
    ones = x.detach().new_ones(()).expand(x.shape)
    return total(ones, axes, keep).clamp(min=1)


def moments(x: Tensor, axes: Sequence[int], keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, var, x - mean) over `axes`: `mean = sum(x)/m`, `var = sum((x-mean)^2)/m`.

    The mean is taken in two parts: rounding it to one float64 costs |mean| * 2^-53, which at |mean|/std = 1e6 is 1e-10
    of a standard deviation, more than the allowed error of a float32 output whose xhat is 1e-4.
    """
    m = count(x, axes, keep)
    mean_hi = total(x, axes, keep) / m
    mean_lo = total(x - mean_hi, axes, keep) / m
    centred = select(x - mean_hi - mean_lo, keep)
    return mean_hi + mean_lo, total(centred**2, axes) / m, centred


def spatial_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask (N, *) or (N, 1, *) of an input x: (N, C, *), as a bool tensor (N, 1, *)."""
    if mask is None:
        return None
    keep = mask.unsqueeze(1) if mask.ndim == x.ndim - 1 else mask
    expected = (x.shape[0], 1, *x.shape[2:])
    if tuple(keep.shape) != expected:
        raise ValueError(f"expected a mask of shape {expected} or without its axis 1 (got {tuple(mask.shape)})")
    return keep
