"""Moments: the statistics of a set of values as one mergeable value.

    count   how many values
    mean    their mean                          mean = sum(x) / count
    m2      their summed squared deviations     m2   = sum((x - mean)^2)

Two sets merge without loss (Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979), so a batch, a masked batch, a slice, a micro-batch, a rank and a whole data set are the same kind of
thing. Everything here is made of differentiable torch operations and accumulates in float64 (float32 where the device
has no float64). Rules: the squares are always of deviations, never E[x^2] - E[x]^2; an empty set is (0, 0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._shapes import expand_mask


def doubles(stats: Tensor) -> Tensor:
    """A kernel's statistics in float64, (3, sets): mean, variance, rstd. In float32 the mean is two floats."""
    if stats.dtype != torch.float32:
        return stats
    wide = stats.double()
    return torch.stack([wide[0] + wide[3], wide[1], wide[2]])


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """The dtype statistics of `x` are kept in: float64, or float32 on devices without float64 (MPS)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Count, mean and summed squared deviations of a set of values: :math:`(n, \bar x, \sum (x - \bar x)^2)`.

    Args:
        count: number of values; an int, or an integer tensor that broadcasts with `mean` (masked sets).
        mean: mean of the values, any shape, for example ``(C,)``.
        m2: sum of squared deviations from the mean, `mean`'s shape. Unit: the square of the values' unit.
        dim: the axes of the input that were reduced, kept so that :func:`normkit.functional.normalize` can lay the
            statistics beside an input again. None: a 1-d mean belongs to axis 1, any other must broadcast.

    Example:
        >>> a, b = Moments.of(x[:5], dim=(0, 2, 3)), Moments.of(x[5:], dim=(0, 2, 3))
        >>> a.merge(b).var(correction=0)  # equals x.var((0, 2, 3), correction=0)

    Reference: Chan, Golub & LeVeque (1979), Updating formulae and a pairwise algorithm for computing sample variances.
    """

    count: int | Tensor
    mean: Tensor
    m2: Tensor
    dim: tuple[int, ...] | None = None

    @staticmethod
    def of(x: Tensor, dim: int | Sequence[int], mask: Tensor | None = None) -> Moments:
        """The moments of `x` over the axes `dim`.

        Args:
            x: real floating-point tensor.
            dim: axis or axes to reduce, as in ``x.mean(dim)``; the remaining axes give the statistics' shape.
            mask: bool, True = a real value. Of `x`'s rank (broadcast against it), or of shape ``(N, *spatial)`` for an
                `x` of shape ``(N, C, *spatial)``. Masked values never enter, NaN and Inf included.

        Raises:
            TypeError: `x` is not real floating point, or `mask` is not bool.
            ValueError: `mask` does not fit `x`.
            IndexError: an axis is out of range.
        """
        if not x.is_floating_point():
            raise TypeError(f"Moments need a real floating-point tensor, got {x.dtype}: convert it with .float() first")
        dims = normalize_dims(dim, x.dim())
        wide = x.to(accumulator_dtype(x))
        if mask is None:
            count: int | Tensor = 1
            for d in dims:
                count = count * x.shape[d]
            mean = wide.sum(dims, keepdim=True) / max(count, 1)
            deviation = wide - mean
        else:
            mask = expand_mask(mask, x)
            # reduce the mask only where it really extends; a broadcast axis multiplies the count
            full = mask.expand_as(x)
            kept = full.sum(dims, keepdim=True)
            mean = torch.where(full, wide, 0).sum(dims, keepdim=True) / kept.clamp(min=1)
            deviation = torch.where(full, wide - mean, 0)
            count = _squeeze(kept, dims)
        m2 = deviation.square().sum(dims)
        return Moments(count, _squeeze(mean, dims), m2, dims)

    @staticmethod
    def of_stats(count: int | Tensor, mean: Tensor, var: Tensor) -> Moments:
        """The moments of `count` values with this mean and biased variance. count: broadcasts with both."""
        return Moments(count, mean, var * count)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together; either may be empty.

        ``n = n_a + n_b``, ``mean = mean_a + (mean_b - mean_a) n_b / n``,
        ``m2 = m2_a + m2_b + (mean_b - mean_a)^2 n_a n_b / n``.
        """
        if not isinstance(other, Moments):
            raise TypeError(f"Moments merge with Moments, got {type(other).__name__}")
        n_a, n_b = self.count, other.count
        if not isinstance(n_a, Tensor) and not isinstance(n_b, Tensor):  # numbers, maybe symbolic ones
            if n_a == 0 or n_b == 0:
                return other if n_a == 0 else self
            share: float | Tensor = n_b / (n_a + n_b)
        else:
            total = torch.as_tensor(n_a + n_b, device=self.mean.device)
            share = torch.as_tensor(n_b, device=self.mean.device).to(self.mean.dtype) / total.clamp(min=1)
        delta = other.mean - self.mean
        return Moments(
            n_a + n_b,
            self.mean + delta * share,
            self.m2 + other.m2 + delta.square() * (share * n_a),
            self.dim if self.dim == other.dim else None,
        )

    def merge_along(self, axis: int = 0) -> Moments:
        """Merge the sets that lie along one axis of the statistics: (K, C) moments of K slices become (C,) of all."""
        parts = self.mean.shape[axis]
        if not isinstance(self.count, Tensor):
            total: int | Tensor = self.count * parts
            mean = self.mean.mean(axis, keepdim=True)
            between = (self.mean - mean).square().sum(axis) * self.count
        else:
            counts = self.count.expand(self.mean.shape) if self.count.dim() else self.count.expand_as(self.mean)
            weights = counts.to(self.mean.dtype)
            total = counts.sum(axis)
            share = weights / total.clamp(min=1).unsqueeze(axis)
            # around an unweighted centre, so that large means cost no digits
            centre = self.mean.mean(axis, keepdim=True)
            mean = centre + ((self.mean - centre) * share).sum(axis, keepdim=True)
            between = (weights * (self.mean - mean).square()).sum(axis)
            mean = torch.where((total > 0).unsqueeze(axis), mean, 0)
        return Moments(total, mean.squeeze(axis), self.m2.sum(axis) + between)

    def var(self, *, correction: float) -> Tensor:
        """The variance ``m2 / (count - correction)``: 0 for the biased, 1 for the unbiased estimate; must be given.

        Like torch.var, a divisor of zero or less gives NaN or Inf.
        """
        if isinstance(self.count, Tensor):
            return self.m2 / (self.count - correction).clamp(min=0)
        return self.m2 / max(self.count - correction, 0)

    def detach(self) -> Moments:
        """The same moments, cut from the autograd graph."""
        return replace(self, mean=self.mean.detach(), m2=self.m2.detach())

    def beside(self, input: Tensor) -> Moments:
        """The same moments with the shape that broadcasts against `input`: ``(C,)`` becomes ``(1, C, 1, 1)``."""
        if self.dim is not None:
            shape = list(self.mean.shape)
            for d in self.dim:
                shape.insert(d, 1)
        elif self.mean.dim() == 1 and input.dim() >= 2 and self.mean.shape[0] == input.shape[1]:
            shape = [1, input.shape[1], *[1] * (input.dim() - 2)]
        else:
            shape = list(self.mean.shape)
        sizes = zip(shape[::-1], input.shape[::-1], strict=False)
        if len(shape) > input.dim() or any(a not in (1, b) for a, b in sizes):
            raise ValueError(
                f"moments of shape {tuple(self.mean.shape)} (over axes {self.dim}) do not fit an input of shape "
                f"{tuple(input.shape)}: they must broadcast against it, or be one value per channel (axis 1)"
            )
        count = self.count
        if isinstance(count, Tensor) and count.dim():
            count = count.expand(self.mean.shape).reshape(shape)
        return Moments(count, self.mean.reshape(shape), self.m2.reshape(shape))


def normalize_dims(dim: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes as sorted non-negative numbers; IndexError when out of range, ValueError when one comes twice."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    for d in dims:
        if not -rank <= d < rank:
            raise IndexError(f"Dimension out of range (expected to be in range of [{-rank}, {rank - 1}], but got {d})")
    resolved = tuple(sorted(d % rank for d in dims))
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"every axis may be reduced once, got dim={dims} for a tensor of {rank} axes")
    return resolved


def _squeeze(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.reshape([s for d, s in enumerate(x.shape) if d not in dims])
