"""Moments: the statistics of a set of values as one mergeable value.

    count   how many values
    mean    their mean                          mean = sum(x) / count
    m2      their summed squared deviations     m2   = sum((x - mean)^2)

Two sets merge without loss (Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979), so a batch, a masked batch, a slice, a micro-batch, a rank and a whole data set are the same kind of
thing. Everything here is made of differentiable torch operations and accumulates in float64. Where a device has no
float64 or is slow at it (`_precision`) everything is float32: the mean is then two numbers, `mean` and the `low` part
that its rounding takes off, and deviations are taken from a first mean before anything is summed. Rules: the squares
are always of deviations, never E[x^2] - E[x]^2; an empty set is (0, 0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._precision import accumulator_dtype
from ._shapes import expand_mask


def doubles(stats: Tensor) -> Tensor:
    """A kernel's statistics in float64: mean, variance, rstd of each set, and the rows that a norm adds.

    In float32 the mean is two floats, the second in the row behind.
    """
    if stats.dtype != torch.float32:
        return stats
    wide = stats.double()
    return torch.cat([(wide[0] + wide[3])[None], wide[1:3], wide[4:]])


def moments_of(stats: Tensor) -> Moments:
    """The moments that the statistics of Triton's kernels are, float32 (5, sets); nothing of the mean is lost."""
    mean, var, _, low, count = stats[:5]
    return Moments.of_stats(count.long(), mean, var, low)


@dataclass(frozen=True, eq=False)
class Moments:
    r"""Count, mean and summed squared deviations of a set of values: :math:`(n, \bar x, \sum (x - \bar x)^2)`.

    Args:
        count: number of values; an int, or an integer tensor that broadcasts with `mean` (masked sets).
        mean: mean of the values, any shape, for example ``(C,)``.
        m2: sum of squared deviations from the mean, `mean`'s shape. Unit: the square of the values' unit.
        dim: the axes of the input that were reduced, kept so that :func:`normkit.functional.normalize` can lay the
            statistics beside an input again. None: a 1-d mean belongs to axis 1, any other must broadcast.
        low: what `mean` lacks by its rounding, `mean`'s shape: the mean is ``mean + low``. None: nothing (float64).

    Example:
        >>> a, b = Moments.of(x[:5], dim=(0, 2, 3)), Moments.of(x[5:], dim=(0, 2, 3))
        >>> a.merge(b).var(correction=0)  # equals x.var((0, 2, 3), correction=0)

    Reference: Chan, Golub & LeVeque (1979), Updating formulae and a pairwise algorithm for computing sample variances.
    """

    count: int | Tensor
    mean: Tensor
    m2: Tensor
    dim: tuple[int, ...] | None = None
    low: Tensor | None = None

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
        full = None
        if mask is None:
            count: int | Tensor = 1
            for d in dims:
                count = count * x.shape[d]
            values: int | Tensor = max(count, 1)
        else:
            mask = expand_mask(mask, x)
            # reduce the mask only where it really extends; a broadcast axis multiplies the count
            full = mask.expand_as(x)
            kept = full.sum(dims, keepdim=True)
            count, values = _squeeze(kept, dims), kept.clamp(min=1)
        if wide.dtype == torch.float64:
            mean, low = total_over(_real(wide, full), dims) / values, None
            deviation = _real(wide - mean, full)
        else:
            # a first mean, off by roundings of large sums, is a shift: no part of the derivative
            first = total_over(_real(wide.detach(), full), dims) / values
            shifted = _real(wide - first, full)
            rest = total_over(shifted, dims) / values
            deviation = _real(shifted - spread(rest, wide), full)
            mean, low = _two(first, rest)
        m2 = _squeeze(total_over(deviation.square(), dims), dims)
        return Moments(count, _squeeze(mean, dims), m2, dims, None if low is None else _squeeze(low, dims))

    @staticmethod
    def of_stats(count: int | Tensor, mean: Tensor, var: Tensor, low: Tensor | None = None) -> Moments:
        """The moments of `count` values with this mean and biased variance. count: broadcasts with both; low: as in
        the class."""
        return Moments(count, mean, var * count, None, low)

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
        low = self.low
        if low is not None or other.low is not None:
            low = torch.zeros_like(self.mean) if low is None else low
            delta = delta + ((0 if other.low is None else other.low) - low)
        mean, low = _moved(self.mean, delta * share, low)
        return Moments(
            n_a + n_b,
            mean,
            self.m2 + other.m2 + delta.square() * (share * n_a),
            self.dim if self.dim == other.dim else None,
            low,
        )

    def merge_along(self, axis: int = 0) -> Moments:
        """Merge the sets that lie along one axis of the statistics: (K, C) moments of K slices become (C,) of all."""
        parts = self.mean.shape[axis]
        # around an unweighted centre, so that large means cost no digits
        centre = self.mean.mean(axis, keepdim=True)
        low = None if self.low is None else torch.zeros_like(centre)
        if not isinstance(self.count, Tensor):
            total: int | Tensor = self.count * parts
            mean = centre
            if self.low is not None:
                mean, low = _moved(centre, (self.mean - centre + self.low).mean(axis, keepdim=True), low)
            between = self._apart(mean, low).square().sum(axis) * self.count
        else:
            counts = self.count.expand(self.mean.shape) if self.count.dim() else self.count.expand_as(self.mean)
            weights = counts.to(self.mean.dtype)
            total = counts.sum(axis)
            share = weights / total.clamp(min=1).unsqueeze(axis)
            mean, low = _moved(centre, (self._apart(centre, None) * share).sum(axis, keepdim=True), low)
            between = (weights * self._apart(mean, low).square()).sum(axis)
            real = (total > 0).unsqueeze(axis)
            mean, low = torch.where(real, mean, 0), None if low is None else torch.where(real, low, 0)
        low = None if low is None else low.squeeze(axis)
        return Moments(total, mean.squeeze(axis), self.m2.sum(axis) + between, None, low)

    def _apart(self, mean: Tensor, low: Tensor | None) -> Tensor:
        """How far these means are from another, ``mean + low``."""
        apart = self.mean - mean
        apart = apart if self.low is None else apart + self.low
        return apart if low is None else apart - low

    def var(self, *, correction: float) -> Tensor:
        """The variance ``m2 / (count - correction)``: 0 for the biased, 1 for the unbiased estimate; must be given.

        Like torch.var, a divisor of zero or less gives NaN or Inf.
        """
        if isinstance(self.count, Tensor):
            return self.m2 / (self.count - correction).clamp(min=0)
        return self.m2 / max(self.count - correction, 0)

    def detach(self) -> Moments:
        """The same moments, cut from the autograd graph."""
        low = None if self.low is None else self.low.detach()
        return replace(self, mean=self.mean.detach(), m2=self.m2.detach(), low=low)

    def to(self, dtype: torch.dtype) -> Moments:
        """The same moments in another dtype; float64 takes the mean's two parts as one."""
        mean, low = self.mean.to(dtype), None if self.low is None else self.low.to(dtype)
        if low is not None and dtype == torch.float64:
            mean, low = mean + low, None
        return Moments(self.count, mean, self.m2.to(dtype), self.dim, low)

    def deviation(self, x: Tensor) -> Tensor:
        """``x - mean``, to every digit that `x` has; the moments must broadcast against `x`."""
        return x - self.mean if self.low is None else (x - spread(self.mean, x)) - self.low

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
        low = None if self.low is None else self.low.reshape(shape)
        return Moments(count, self.mean.reshape(shape), self.m2.reshape(shape), None, low)


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


def total_over(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The sum over `dims`, which stay with size 1; in float32 one axis at a time, the last first.

    PyTorch adds along one axis as a tree. Of several it may add the blocks of the outer one in a row: on the CPU 40,000
    of them lose 200 u.
    """
    if x.dtype == torch.float64:
        return x.sum(dims, keepdim=True)
    for axis in reversed(dims):
        x = x.sum(axis, keepdim=True)
    return x


def spread(value: Tensor, x: Tensor) -> Tensor:
    """`value` beside `x`, which it broadcasts against: in float32 expanded so that its gradient is a `total_over`."""
    if x.dtype == torch.float64:
        return value
    value = value.to(x.dtype)  # whose gradient would be rounded before it is summed
    value = value.reshape(*[1] * (x.dim() - value.dim()), *value.shape)
    for axis in range(x.dim()):
        value = value.expand(*x.shape[: axis + 1], *value.shape[axis + 1 :])
    return value


def _real(x: Tensor, full: Tensor | None) -> Tensor:
    """`x`, with zeros where the mask, of its shape, has no real value."""
    return x if full is None else torch.where(full, x, 0)


def _two(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a + b`` and what its rounding loses (Knuth's two-sum), whose derivative is 0."""
    total = a + b
    of_b = total - a
    return total, ((a - (total - of_b)) + (b - of_b)).detach()


def _moved(mean: Tensor, by: Tensor, low: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The mean ``mean + low``, moved; one number where it was one."""
    return (mean + by, None) if low is None else _two(mean, low + by)
