"""Synchronised batch normalization: batch norm under the moments of all processes' batches, merged.

One collective gathers count, mean and m2 of all ranks; then they merge like any others. The gradient of a gathered
value is the sum of what every rank wants of it: one collective in the backward too, and one in its own derivative, so
derivatives of every order cross the ranks. Any backend, any counts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _shapes
from .._activation import NONE, Activation
from ..kernels import composed
from ..moments import Moments, accumulator_dtype
from . import _running
from ._choose import choose
from ._running import Running
from .batch_norm import verify


def apply(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    group: dist.ProcessGroup | None,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """Training forward of this rank's batch; every rank of the group must call it, an empty batch included.

    input: (N, C, *), N as this rank has it. The parameters' gradients are this rank's, as in torch's SyncBatchNorm:
    data-parallel training averages them.

    Raises:
        ValueError: all ranks together have one value per channel (read on the CPU alone).
    """
    verify(input, running, weight, bias, True, eps, residual)
    if mask is not None:
        mask = _shapes.channel_mask(mask, input)
    choose("sync_batch_norm", input, activation, mask, (residual, weight, bias))  # refuses a backend that lacks it
    wide = input.to(accumulator_dtype(input))
    moments = of_all_ranks(Moments.of(wide, _shapes.batch_dims(input.dim()), mask), group)
    if input.device.type == "cpu" and int(moments.count) == 1:
        raise ValueError(_shapes.ONE_VALUE.format(input.size()))
    xhat = composed.standardize(wide, moments, eps, mask)
    if running is not None:
        _running.move(running, moments)
    shape = _shapes.channel_shape(input.dim(), input.shape[1])
    scale, shift = (None if p is None else p.reshape(shape) for p in (weight, bias))
    return composed.finish(xhat, scale, shift, residual, activation, mask, input.dtype)


def of_all_ranks(moments: Moments, group: dist.ProcessGroup | None) -> Moments:
    """The moments of all ranks' sets together, differentiable; every rank must call it. mean, m2: (C,).

    The count comes back as a 0-dim tensor, so that no device is read.
    """
    count = torch.as_tensor(moments.count, device=moments.mean.device)
    count = count.flatten()[:1].to(moments.mean.dtype)  # exact up to 2^53 values (float32: 2^24)
    rows = _Gather.apply(torch.cat([count, moments.mean, moments.m2]), group)  # (ranks, 1 + 2C)
    counts, (means, m2s) = rows[:, :1].detach().long(), rows[:, 1:].chunk(2, dim=1)
    whole = Moments(counts, means, m2s).merge_along(0)
    return Moments(counts.sum(), whole.mean, whole.m2, moments.dim)


class _Gather(torch.autograd.Function):
    """row: (K,) of this rank -> (ranks, K)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        row, group = arguments
        ctx.group = group
        rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
        dist.all_gather(rows, row.contiguous(), group=group)
        return torch.stack(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return _Sum.apply(gradients[0], ctx.group)[dist.get_rank(ctx.group)], None


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks, on every rank."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        value, group = arguments
        ctx.group = group
        total = value.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return _Sum.apply(gradients[0], ctx.group), None
