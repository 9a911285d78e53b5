"""Synchronised batch normalization: batch norm under the moments of all processes' batches, merged.

One collective gathers count, mean and m2 of all ranks; then they merge like any others. The gradient of a merged value
is the sum of what every rank wants of it: one collective of 2C numbers in the backward, and one in its own derivative,
so derivatives of every order cross the ranks. Any backend, any counts.

Rule: ranks may differ in their kernels (an empty or masked batch has no native one), so every rank's graph is the same
and takes part in the same collectives: one node, whichever kernels compute it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _shapes
from .._activation import NONE, Activation
from ..distributed import gather
from ..kernels import composed, native
from ..moments import Moments, accumulator_dtype
from . import _running
from ._choose import choose
from ._fused import Call, Forwarded, Gradients, Needs, Operands, composed_backward, run, run_masked
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
    path, _ = choose("sync_batch_norm", input, activation, mask, (residual, weight, bias))
    kernel = native if path == "native" and input.numel() else composed
    call = SyncBatchNormCall(kernel, activation, running, True, eps, mask, group)
    if mask is None:
        return run(call, input, weight, bias, residual)
    return run_masked(call, input, weight, bias, residual, mask)


@dataclass(slots=True, eq=False)
class SyncBatchNormCall(Call):
    """This rank's part of one synchronised batch norm, on the native kernels of batch norm or composed.

    Native forward: the statistics of this rank, then y by those of all ranks as if they were given. Native backward: dx
    as if they were constants, with this rank's sums; then what all ranks want of mean and m2, which is one more batch
    norm of x, with that dx as its residual.
    """

    running: Running | None
    training: bool  # False: by the running statistics
    eps: float
    mask: Tensor | None  # (N, 1, *); composed only
    group: dist.ProcessGroup | None

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (4, C) float64: mean, biased var, rstd and count of all ranks; bits)."""
        if not self.training:
            assert self.running is not None
            return self._native(of, *self.running[:2], save)
        if self.kernel is native:
            mean, var, _ = native.batch_norm_statistics(of.input)
            values = _shapes.values_per_channel(of.input.shape)
            whole = self._whole(Moments(values, mean, var * values), of.input)
            y, stats, bits = self._native(of, whole.mean, whole.var(correction=0), save)
        else:
            wide, own = self._own(of.input)
            whole, bits = self._whole(own, of.input), None
            y, var = self._finished(of, wide, whole, self.activation), whole.var(correction=0)
            stats = torch.stack([whole.mean, var, (var + self.eps).rsqrt()])
        count = torch.as_tensor(whole.count)
        return y, None if stats is None else torch.cat([stats, count.to(stats).expand(1, stats.shape[1])]), bits

    def _own(self, input: Tensor) -> tuple[Tensor, Moments]:
        """The input in the accumulator's dtype, cast once for all that is made of it, and its moments."""
        wide = input.to(accumulator_dtype(input))
        return wide, Moments.of(wide, _shapes.batch_dims(input.dim()), self.mask)

    def _whole(self, own: Moments, input: Tensor) -> Moments:
        """The moments of all ranks' batches, which move the running statistics."""
        whole = of_all_ranks(own, self.group)
        if input.device.type == "cpu" and not torch.compiler.is_compiling() and int(whole.count) == 1:
            raise ValueError(_shapes.ONE_VALUE.format(input.size()))
        if self.running is not None:
            _running.move(self.running, whole)
        return whole

    def _native(self, of: Operands, mean: Tensor, var: Tensor, save: bool) -> Forwarded:
        """Batch norm by given statistics."""
        return native.batch_norm_inference(
            of.input, mean, var, *of[1:], self.activation.code, self.activation.param, self.eps, save_for_backward=save
        )

    def _finished(self, of: Operands, wide: Tensor, moments: Moments, activation: Activation) -> Tensor:
        """The output from the moments of all ranks, by differentiable operations. wide: see `_own`."""
        input, weight, bias, residual = of
        return composed.by_moments(wide, moments, weight, bias, self.eps, residual, activation, self.mask, input.dtype)

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        input, weight, bias, residual = of
        if self.kernel is not native:
            found = composed_backward(self, dy, of, stats, bits, needs)
            dx, dweight, dbias, dresidual = (None if gradient is None else gradient.detach() for gradient in found)
            return dx, dweight, dbias, dresidual
        mean, var, rstd, count = stats
        scale = torch.ones_like(mean) if weight is None else weight.double()  # float64: so are the sums then
        shift = torch.zeros_like(mean) if bias is None else bias.double()
        dx, dweight, dbias, dresidual = native.batch_norm_backward(
            dy, input, scale, shift, residual, bits, stats[:3], self.activation.code, self.activation.param,
            training=False, needs=(needs[0], True, True, needs[3]),
        )  # fmt: skip
        assert dweight is not None
        assert dbias is not None
        if needs[0]:
            assert dx is not None
            slope = -scale * rstd  # d xhat = -rstd * d mean - xhat * rstd^2 / (2 * count) * d m2
            dmean, dm2 = _Sum.apply(torch.stack([slope * dbias, slope * rstd / (2 * count) * dweight]), self.group)
            dx, _, _ = native.batch_norm_inference(
                input, mean, var, 2 * dm2 / rstd, dmean / count, dx, NONE.code, NONE.param, self.eps,
                save_for_backward=False,
            )  # fmt: skip
        return (
            dx,
            dweight.to(weight.dtype) if needs[1] and weight is not None else None,
            dbias.to(bias.dtype) if needs[2] and bias is not None else None,
            dresidual,
        )

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations; the moments of all ranks are known."""
        mean, var, _, count = stats
        wide, own = self._own(of.input)
        moments = _attached(own, Moments(count[0].long(), mean, var * count), self.group)
        return self._finished(of, wide, moments, activation)

    def compiled(self, of: Operands) -> Tensor:
        """Compiled code takes the differentiable operations."""
        wide, own = self._own(of.input)
        moments = _attached(own, self._whole(own, of.input), self.group)
        return self._finished(of, wide, moments, self.activation)

    def reaching(self, dy: Tensor) -> Tensor:
        """What the mask keeps."""
        return dy if self.mask is None else torch.where(self.mask, dy, 0)

    def again(self, stats: Tensor) -> Call | None:
        """By the statistics as given, without a collective."""
        if self.kernel is not native:
            return None
        return replace(self, training=False, running=Running(stats[0], stats[1], None, None))


def of_all_ranks(moments: Moments, group: dist.ProcessGroup | None) -> Moments:
    """The moments of all ranks' sets together, without gradient; every rank must call it. mean, m2: (C,).

    The count comes back as a 0-dim tensor, so that no device is read.
    """
    mean, m2 = moments.mean.detach(), moments.m2.detach()
    count = torch.as_tensor(moments.count, device=mean.device).flatten()[:1]
    parts = gather([count, mean, m2], group)  # in float64: exact counts up to 2^53
    counts, means, m2s = (torch.stack(column) for column in zip(*parts, strict=True))
    whole = Moments(counts, means, m2s).merge_along(0)
    return Moments(counts.sum(), whole.mean, whole.m2, moments.dim)


def _attached(own: Moments, whole: Moments, group: dist.ProcessGroup | None) -> Moments:
    """`whole`, whose gradient reaches this rank's own moments and comes from all ranks."""
    count = torch.as_tensor(own.count, device=own.mean.device).flatten()[:1].to(own.mean.dtype)
    mean, m2 = _Whole.apply(own.mean, own.m2, count, whole.mean, whole.m2, whole.count, group)
    return Moments(whole.count, mean, m2, own.dim)


class _Whole(torch.autograd.Function):
    """(mean, m2) of this rank -> those of all ranks, which are known. (C,) each.

    mean = S count_r mean_r / count, m2 = S m2_r + count_r (mean_r - mean)^2.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        own_mean, _, own_count, mean, m2, count, group = arguments
        mean, m2 = mean.clone(), m2.clone()
        ctx.save_for_backward(own_mean, mean)
        ctx.own_count, ctx.count, ctx.group = own_count, count, group
        return mean, m2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        own_mean, mean = ctx.saved_tensors
        dmean, dm2 = _Sum.apply(torch.stack(gradients), ctx.group)
        own = ctx.own_count * (dmean / ctx.count + 2 * (own_mean - mean) * dm2)
        return own, dm2, None, None, None, None, None


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
