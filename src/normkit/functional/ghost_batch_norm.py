"""Ghost batch normalization as a function: batch norm of each slice of a batch by itself, all slices in one call.

The slices are near-equal and in order, as numpy.array_split cuts. Native: the kernels of batch norm, slice by slice.
Composed: there are at most two lengths, so two reductions give the statistics of all slices, and one elementwise pass
lays them on the samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .. import _shapes
from .._activation import NONE, Activation, resolve
from ..kernels import composed, native
from ..moments import Moments, accumulator_dtype
from . import _running
from ._choose import choose
from ._fused import Call, Forwarded, Gradients, Needs, Operands, run
from ._running import Running
from .batch_norm import apply as apply_batch_norm
from .batch_norm import prepare, running_of


def ghost_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    virtual_batch_size: int = 32,
    residual: Tensor | None = None,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Batch normalization of each slice of a batch by its own statistics; the running ones move by the whole batch.

    .. math:: y_n = \mathrm{activation}\Big(\frac{x_n - \mathrm{mean}_{s(n)}}{\sqrt{\mathrm{var}_{s(n)} + \epsilon}}
              \cdot \mathrm{weight} + \mathrm{bias} + \mathrm{residual}_n\Big), \quad s(n) \text{ the slice of } n

    Args:
        input: (N, C, *), real floating point.
        running_mean, running_var: (C,), or None in training. Moved once, by the moments of the slices merged.
        weight, bias: (C,) or None (1 and 0).
        training: False is batch norm by the running statistics.
        momentum: the weight of the new value.
        eps: added to each variance, inside the square root.
        virtual_batch_size: the longest slice, in samples; see :func:`slice_sizes`.
        residual, activation, mask: as in :func:`normkit.functional.batch_norm`. Under a mask a slice's statistics are
            those of its real values.

    Returns:
        The input's shape, dtype and memory format.

    Raises:
        ValueError: virtual_batch_size below 1, and whatever batch_norm raises.

    Reference: Hoffer, Hubara & Soudry (2017), Train longer, generalize better. https://arxiv.org/abs/1705.08741
    """
    running = running_of(running_mean, running_var, training, momentum)
    return apply(
        input, running, weight, bias, training, eps, virtual_batch_size, residual=residual,
        activation=resolve(activation), mask=mask,
    )  # fmt: skip


def apply(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    virtual_batch_size: int,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
    small_batch: str = "error",
) -> Tensor:
    """What :func:`ghost_batch_norm` and the layers share."""
    sizes = slice_sizes(input.shape[0], virtual_batch_size) if training and input.dim() > 1 else []
    if len(sizes) < 2:  # one slice, or evaluation
        return apply_batch_norm(
            input, running, weight, bias, training, eps, residual=residual, activation=activation, mask=mask,
            small_batch=small_batch,
        )  # fmt: skip
    training, mask = prepare(input, running, weight, bias, training, eps, residual, mask, small_batch)
    if not training:  # one single real value under the mask
        return apply_batch_norm(
            input, running, weight, bias, False, eps, residual=residual, activation=activation, mask=mask
        )
    path, _ = choose("ghost_batch_norm", input, activation, mask, (residual, weight, bias))
    if path == "native" and not torch.compiler.is_compiling():
        return run(GhostBatchNormCall(native, activation, running, sizes, eps), input, weight, bias, residual)
    y, slices = _composed(input, weight, bias, sizes, eps, residual, activation, mask)
    if running is not None:
        _move(running, slices, input, mask)
    return y


def _composed(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sizes: list[int],
    eps: float,
    residual: Tensor | None,
    activation: Activation,
    mask: Tensor | None,
) -> tuple[Tensor, Moments]:
    """(output, the slices' moments: mean, m2 (K, C); count (K, 1)) by differentiable operations."""
    wide = input.to(accumulator_dtype(input))
    slices = slice_moments(wide, sizes, mask)
    moments = _per_sample(slices, sizes, input.dim())
    return composed.by_moments(wide, moments, weight, bias, eps, residual, activation, mask, input.dtype), slices


def _move(running: Running, slices: Moments, input: Tensor, mask: Tensor | None) -> None:
    whole = slices.merge_along(0)
    if mask is None:
        whole = Moments(_shapes.values_per_channel(input.shape), whole.mean, whole.m2)
    _running.move(running, whole)


@dataclass(slots=True, eq=False)
class GhostBatchNormCall(Call):
    """One ghost batch norm on the native kernels: those of batch norm, slice by slice."""

    running: Running | None
    sizes: list[int]
    eps: float

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (3 * slices, C) float64: mean, biased var, rstd of each slice; bits)."""
        y, stats, bits = self.kernel.batch_norm_forward(
            *of, self.activation.code, self.activation.param, self.eps, save_for_backward=save, sizes=self.sizes
        )
        if self.running is not None:
            mean, var, _ = stats.view(len(self.sizes), 3, -1).unbind(1)
            count = torch.tensor(self.sizes).unsqueeze(1) * _shapes.product(of.input.shape[2:])
            _move(self.running, Moments(count, mean, var * count), of.input, None)
        return y, stats, bits

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        return self.kernel.batch_norm_backward(
            dy, *of, bits, stats, self.activation.code, self.activation.param, training=True, needs=needs,
            sizes=self.sizes,
        )  # fmt: skip

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations."""
        input, weight, bias, residual = of
        return _composed(input, weight, bias, self.sizes, self.eps, residual, activation, None)[0]

    def again(self, stats: Tensor) -> Call:
        """By the same slices again."""
        return replace(self, running=None)


def slice_sizes(num_samples: int, virtual_batch_size: int) -> list[int]:
    """How many samples each slice gets: near-equal, the longer ones first, at most `virtual_batch_size`, never one.

    Where both rules cannot hold the second wins: three samples at a virtual batch of 2 are one slice.
    """
    if virtual_batch_size < 1:
        raise ValueError(f"virtual_batch_size must be 1 or more, got {virtual_batch_size}")
    slices = max(1, min(-(-num_samples // virtual_batch_size), num_samples // 2))
    size, longer = divmod(num_samples, slices)
    return [size + 1] * longer + [size] * (slices - longer)


def slice_moments(x: Tensor, sizes: list[int], mask: Tensor | None) -> Moments:
    """The moments of K slices of x: (N, C, *); mask: (N, 1, *). mean, m2: (K, C); count: (K, 1)."""
    parts, start = [], 0
    for size in dict.fromkeys(sizes):  # one length, or two
        slices = sizes.count(size)
        stop = start + slices * size
        rows = x[start:stop].unflatten(0, (slices, size))
        kept = None if mask is None else mask[start:stop].unflatten(0, (slices, size))
        part = Moments.of(rows, (1, *range(3, rows.dim())), kept)
        count = part.count
        if not isinstance(count, Tensor):
            count = torch.full((slices, 1), count, device=x.device)
        parts.append(Moments(count[:, :1], part.mean, part.m2))
        start = stop
    count, mean, m2 = (torch.cat([getattr(part, name) for part in parts]) for name in ("count", "mean", "m2"))
    return Moments(count, mean, m2)


def _per_sample(slices: Moments, sizes: list[int], rank: int) -> Moments:
    """The moments of each sample's slice: (N, C), laid beside an input (N, C, *)."""
    if not isinstance(slices.count, Tensor):
        raise AssertionError("slice_moments counts in a tensor")
    repeats = torch.tensor(sizes, device=slices.mean.device)
    total = sum(sizes)
    count, mean, m2 = (
        value.repeat_interleave(repeats, 0, output_size=total) for value in (slices.count, slices.mean, slices.m2)
    )
    return Moments(count, mean, m2, tuple(range(2, rank)))
