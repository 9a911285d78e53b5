"""Ghost batch normalization as a function: batch norm of each slice of a batch by itself, all slices in one call.

The slices are near-equal and in order, as numpy.array_split cuts. Native: the kernels of batch norm, slice by slice.
Triton: the kernels of batch norm, whose programs belong to slices.
Composed: there are at most two lengths, so two reductions give the statistics of all slices, and one elementwise pass
lays them on the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import _shapes
from .._activation import Activation, resolve
from .._fx import traceable
from .._operands import Gradients, Maybe, Modulate, Needs, Operands, Saved
from ..kernels import composed, triton
from ..moments import Moments, moments_of
from . import running
from .batch_norm import TRITON_OPERATOR, BatchNormSpec, running_of
from .road import run
from .spec import NormSpec


@traceable
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
    modulate: Modulate = None,
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
        residual, activation, mask, modulate: as in :func:`normkit.functional.batch_norm`. Under a mask a slice's
            statistics are those of its real values.

    Returns:
        The input's shape, dtype and memory format.

    Raises:
        ValueError: virtual_batch_size below 1, and whatever batch_norm raises.

    Reference: Hoffer, Hubara & Soudry (2017), Train longer, generalize better. https://arxiv.org/abs/1705.08741
    """
    statistics = running_of(running_mean, running_var, training, momentum)
    if input.dim() == 1 and input.numel() == 0:
        return input.clone()  # torch accepts an empty vector
    norm = sliced(BatchNormSpec(resolve(activation), statistics, training, eps), input, virtual_batch_size)
    return run(norm, input, weight, bias, residual, mask, modulate)


def sliced(norm: BatchNormSpec, input: Tensor, virtual_batch_size: int) -> BatchNormSpec:
    """The batch norm of each slice of this input; `norm` itself in evaluation and where there is one slice."""
    sizes = slice_sizes(input.shape[0], virtual_batch_size) if norm.training and input.dim() > 1 else []
    if len(sizes) < 2:
        return norm
    return GhostBatchNormSpec(norm.activation, norm.running, True, norm.eps, norm.small_batch, sizes)


@dataclass(slots=True, eq=False)
class GhostBatchNormSpec(BatchNormSpec):
    """One batch norm of each of several slices, in training. sizes: how many samples each has."""

    sizes: Sequence[int] = ()

    name: ClassVar[str] = "ghost_batch_norm"
    has_aten: ClassVar[bool] = False

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """The core's one call knows no slices."""
        return None

    def why_not_native(self, operands: Operands) -> str | None:
        """The kernels of slices take no mask."""
        return None if operands.mask is None else "a mask is given"

    def why_not_operator(self, kernel: ModuleType, operands: Operands) -> str | None:
        """Triton's kernels are of all slices at once."""
        return None if kernel is triton else f"{self.name} has no operator for compiled graphs"

    def why_not_exported(self) -> str | None:
        """PyTorch has no such norm."""
        return f"PyTorch has no {self.name}"

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (3 * slices, C): mean, biased var, rstd of each slice; Triton's (5, slices * C)."""
        given, sizes = (operands, self.activation, self.eps), self.sizes
        moved = None
        if self.running is not None and kernel.MOVES_RUNNING:
            moved = running.for_kernel(self.running, operands.input)
        if moved is not None:
            return kernel.batch_norm_forward(*given, save=save, sizes=sizes, running=moved)
        y, saved = kernel.batch_norm_forward(*given, save=save, sizes=sizes)
        if self.running is not None and kernel is triton:
            self._move(moments_of(saved.stats.view(5, len(sizes), -1)), operands)
        elif self.running is not None:
            mean, var, _ = saved.stats.view(len(sizes), 3, -1).unbind(1)
            count = torch.tensor(sizes, device=mean.device).unsqueeze(1) * math.prod(operands.input.shape[2:])
            self._move(Moments.of_stats(count, mean, var), operands)
        return y, saved

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        return kernel.batch_norm_backward(dy, operands, saved, self.activation, needs, training=True, sizes=self.sizes)

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations."""
        wide = composed.widened(operands)
        slices = slice_moments(wide, self.sizes, operands.mask)
        if stats is None and self.running is not None:
            self._move(slices, operands)
        moments = _per_sample(slices, self.sizes, wide.dim())
        return composed.by_moments(wide, moments, operands, self.activation, self.eps)

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """By the operator of batch norm; the running statistics move outside of it."""
        y, stats = TRITON_OPERATOR(len(self.sizes), self.eps, activation, operands)
        if self.running is not None:
            mean, var, _, count = stats.view(4, len(self.sizes), operands.input.shape[1]).unbind()
            self._move(Moments.of_stats(count.long(), mean, var), operands)
        return y

    def _move(self, slices: Moments, operands: Operands) -> None:
        """Move the running statistics by the slices merged. mean, m2: (K, C); count: (K, 1)."""
        assert self.running is not None
        whole = slices.merge_along(0)
        if operands.mask is None:
            count = _shapes.values_per_channel(operands.input.shape)
            whole = Moments(count, whole.mean, whole.m2, whole.dim, whole.low)  # 2.4's Dynamo: no `replace`
        running.move(self.running, whole)

    def for_recompute(self, kernel: ModuleType, operands: Operands, stats: Tensor) -> NormSpec | None:
        """By the same slices again."""
        return replace(self, running=None)


def slice_sizes(num_samples: int, virtual_batch_size: int) -> list[int]:
    """How many samples each slice gets: near-equal, the longer ones first, at most `virtual_batch_size`, never one.

    Where both rules cannot hold the second wins: three samples at a virtual batch of 2 are one slice.
    """
    if virtual_batch_size < 1:
        raise ValueError(f"virtual_batch_size must be 1 or more, got {virtual_batch_size}")
    num_samples = int(num_samples)  # a traced program's size is symbolic, and its slices are part of the program
    slices = max(1, min(-(-num_samples // virtual_batch_size), num_samples // 2))
    return _shapes.even_sizes(num_samples, slices)


def slice_moments(x: Tensor, sizes: Sequence[int], mask: Tensor | None) -> Moments:
    """The moments of K slices of x: (N, C, *); mask: (N, 1, *). mean, m2: (K, C); count: (K, 1)."""
    if mask is not None:
        mask = mask.expand(x.shape[0], *mask.shape[1:])  # one for all samples has to be cut too
    parts, start = [], 0
    for size in dict.fromkeys(sizes):  # one length, or two
        slices = len([one for one in sizes if one == size])  # not sizes.count, which Dynamo lacks up to torch 2.8
        stop = start + slices * size
        rows = x[start:stop].unflatten(0, (slices, size))
        kept = None if mask is None else mask[start:stop].unflatten(0, (slices, size))
        part = Moments.of(rows, (1, *range(3, rows.dim())), kept)
        count = part.count
        if mask is None or not isinstance(count, Tensor):
            count = torch.full((slices, 1), int(count), device=x.device)
        parts.append(Moments(count[:, :1], part.mean, part.m2, None, part.low))
        start = stop
    count, mean, m2 = (torch.cat([getattr(part, name) for part in parts]) for name in ("count", "mean", "m2"))
    lows = [part.low for part in parts if part.low is not None]
    return Moments(count, mean, m2, None, torch.cat(lows) if lows else None)


def _per_sample(slices: Moments, sizes: Sequence[int], rank: int) -> Moments:
    """The moments of each sample's slice: (N, C), laid beside an input (N, C, *)."""
    assert isinstance(slices.count, Tensor)  # slice_moments counts in a tensor
    slice_of = [number for number, size in enumerate(sizes) for _ in range(size)]
    rows = torch.tensor(slice_of, device=slices.mean.device)
    low = None if slices.low is None else slices.low[rows]
    return Moments(slices.count[rows], slices.mean[rows], slices.m2[rows], tuple(range(2, rank)), low)
