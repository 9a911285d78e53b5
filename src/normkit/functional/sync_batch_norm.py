"""Synchronised batch normalization: batch norm under the moments of all processes' batches, merged.

One collective gathers count, mean and m2 of all ranks; then they merge like any others. The gradient of a merged value
is the sum of what every rank wants of it: one collective of 2C numbers in the backward, and one in its own derivative,
so derivatives of every order cross the ranks. Any backend, any counts.

Rule: ranks may differ in their kernels (an empty or masked batch has no native one), so every rank's graph is the same
and takes part in the same collectives: one node, whichever kernels compute it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import _operands, _shapes
from .._activation import NONE, Activation
from .._operands import Gradients, Maybe, Needs, Operands, Saved, in_dtype_of, is_modulated
from .._precision import accumulator_dtype, wide_dtype
from ..distributed import gather, gather_rows, group_name, total
from ..kernels import composed, native, triton
from ..kernels.native_means import in_float32
from ..moments import Moments, moments_of
from . import _autograd, agreement, running
from .batch_norm import BatchNormSpec, checked
from .choose import may_look
from .running import Running
from .spec import NormSpec


def synchronised(
    norm: BatchNormSpec, input: Tensor, group: dist.ProcessGroup | None, layer: nn.Module
) -> BatchNormSpec:
    """The training batch norm of a layer under the moments of all ranks of a group.

    Raises:
        RuntimeError: at a call that agrees first: the group has no backend for the input's device.
    """
    due = agreement.is_due(layer, input, group)
    return SyncBatchNormSpec(norm.activation, norm.running, True, norm.eps, norm.small_batch, group, due)


@dataclass(slots=True, eq=False)
class SyncBatchNormSpec(BatchNormSpec):
    """This rank's part of one synchronised batch norm; every rank of the group must call it, an empty batch included.

    The parameters' gradients are this rank's, as in torch's SyncBatchNorm: data-parallel training averages them.

    Native forward: the statistics of this rank, then y by those of all ranks as if they were given. Native backward: dx
    as if they were constants, with this rank's sums; then what all ranks want of mean and m2, which is one more batch
    norm of x, with that dx as its residual. Triton's backward has the sums first, and puts that in with dx.
    """

    group: dist.ProcessGroup | None = None
    agrees: bool = False  # whether the ranks first say which call this is

    name: ClassVar[str] = "sync_batch_norm"
    has_aten: ClassVar[bool] = False

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """The core's one call knows no other ranks."""
        return None

    def verified(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """The operands, checked; mask (N, 1, *). One value on this rank is fine: the others have some."""
        operands = checked(self, operands)
        input = operands.input
        residual = _shapes.fitting_residual(operands.residual, input)
        return self, _operands.verified(operands, input, residual, _shapes.optional_channel_mask(operands.mask, input))

    def why_not_native(self, operands: Operands) -> str | None:
        """The kernels' statistics are of a whole batch."""
        if operands.mask is not None:
            return "a mask is given"
        return None if operands.input.numel() else "the batch is empty"

    def why_not_operator(self, kernel: ModuleType, operands: Operands) -> str | None:
        """Triton has one of this rank's statistics and one by those of all ranks, which are gathered between them."""
        return None if kernel is triton else f"{self.name} has no operator for compiled graphs"

    def why_not_exported(self) -> str | None:
        """An exported program has no other ranks."""
        return f"PyTorch has no {self.name}"

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (4, C): mean, biased var, rstd and count of all ranks, and the mean's low part where it has one;
        Triton's as its kernels save them.

        kernel: native, triton or composed.

        Raises:
            ValueError: all ranks together have one value per channel (read on the CPU alone).
        """
        input = operands.input
        if kernel is triton:
            stats = self._whole_by_triton(triton.batch_norm_statistics(operands, self.eps), input)
            return triton.batch_norm_by_statistics(operands, stats, self.activation, save=save)
        if kernel is native:
            mean, var, _ = native.batch_norm_statistics(input)
            values = _shapes.values_per_channel(input.shape)
            whole = self._whole(Moments.of_stats(values, mean, var), input)
            y, saved = native.batch_norm_inference(
                operands, whole.mean, whole.var(correction=0), self.activation, self.eps, save=save
            )
        else:
            wide, own = self._own(operands)
            whole = self._whole(own, input)
            y, var = composed.by_moments(wide, whole, operands, self.activation, self.eps), whole.var(correction=0)
            saved = Saved(torch.stack([whole.mean, var, (var + self.eps).rsqrt()]))
        if saved is None:
            return y, None
        count = torch.as_tensor(whole.count, device=saved.stats.device).to(saved.stats).expand(1, saved.stats.shape[1])
        low = () if whole.low is None else (whole.low[None],)
        return y, saved._replace(stats=torch.cat([saved.stats, count, *low]))

    def _whole_by_triton(self, own: Tensor, input: Tensor) -> Tensor:
        """The statistics of all ranks as Triton's kernels save them, from this rank's.

        They travel in the dtype of the composed path, which another rank may take.
        """
        return _in_float32(self._whole(moments_of(own).to(accumulator_dtype(input)), input), self.eps)

    def _own(self, operands: Operands) -> tuple[Tensor, Moments]:
        """The input in the accumulator's dtype, cast once for all that is made of it, and its moments."""
        wide = composed.widened(operands)
        return wide, Moments.of(wide, _shapes.batch_dims(wide.dim()), operands.mask)

    def _whole(self, own: Moments, input: Tensor) -> Moments:
        """The moments of all ranks' batches, which move the running statistics."""
        if not torch.compiler.is_compiling():
            number = agreement.count(self.group)
            if self.agrees:
                agreement.verify(input, number, self.group)
        whole = of_all_ranks(own, self.group)
        assert isinstance(whole.count, Tensor)
        count = int(whole.count) if may_look(whole.count) else None
        if count == 1:
            raise ValueError(_shapes.ONE_VALUE.format(input.size()))
        if self.running is None:
            return whole
        if count is None or wide_dtype(whole.mean.device) != torch.float64:
            running.move(self.running, whole)
        else:
            var = whole.var(correction=0)
            running.move_by_stats(self.running, torch.stack([whole.mean, var, var]).double(), count)
        return whole

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        if kernel is triton:
            return self._backward_by_triton(dy, operands, saved, needs)
        if kernel is not native:
            found = _autograd.composed_backward(self, kernel, dy, operands, saved, needs)
            return Gradients(*(None if gradient is None else gradient.detach() for gradient in found))
        return Gradients(*in_float32(lambda dy, operands: self._backward(dy, operands, saved, needs), dy, operands))

    def _backward(self, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """By the native kernels."""
        input, weight, bias, *_ = operands
        mean, var, rstd, count = saved.stats
        scale = torch.ones_like(mean) if weight is None else weight.double()  # float64: so are the sums then
        shift = torch.zeros_like(mean) if bias is None else bias.double()
        dx, dweight, dbias, dresidual = native.batch_norm_backward(
            dy, _operands.under(operands, scale, shift), saved._replace(stats=saved.stats[:3]), self.activation,
            Needs(needs.input, True, True, needs.residual), training=False,
        )  # fmt: skip
        assert dweight is not None
        assert dbias is not None
        if needs.input:
            assert dx is not None
            slope = -scale * rstd  # d xhat = -rstd * d mean - xhat * rstd^2 / (2 * count) * d m2
            dmean, dm2 = total(torch.stack([slope * dbias, slope * rstd / (2 * count) * dweight]), self.group)
            dx = native.add_means(dx, input, 2 * dm2 / rstd**2, dmean / count / rstd, mean, var, self.eps)
        return Gradients(
            dx,
            in_dtype_of(weight, dweight, needs.weight),
            in_dtype_of(bias, dbias, needs.bias),
            dresidual,
        )

    def _backward_by_triton(self, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        from ._by_statistics import shares_of_batch, wanted_of_ranks

        input, weight, bias, *_ = operands
        dbias, dweight = sums = triton.batch_norm_sums(dy, operands, saved, self.activation)
        shares = sums  # not read where no input wants a gradient
        if needs.input:
            wanted = wanted_of_ranks(sums, saved.stats, weight).to(accumulator_dtype(input))
            shares = shares_of_batch(total(wanted, self.group), saved.stats)
        found = triton.batch_norm_by_shares(dy, operands, saved, shares, self.activation, needs)
        return found._replace(
            weight=in_dtype_of(weight, dweight, needs.weight),
            bias=in_dtype_of(bias, dbias, needs.bias),
        )

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations; in an eager forward as one node of the graph, as the rule above asks."""
        if stats is None and not torch.compiler.is_compiling():
            if not is_modulated(operands):
                return _autograd.apply_kernel(self, composed, operands)
            y = _autograd.apply_kernel(replace(self, activation=NONE), composed, composed.bare(operands))
            return composed.add_and_activate(y, operands, self.activation)
        wide, own = self._own(operands)
        if stats is None:
            whole = self._whole(own, operands.input)
        else:
            mean, var, _, count, *low = stats
            whole = Moments.of_stats(count[0].long(), mean, var, low[0] if low else None)
        moments = _attached(own, whole, self.group)
        return composed.by_moments(wide, moments, operands, self.activation, self.eps)

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """This rank's statistics, those of all ranks, and the rest by them; the collectives are operations between."""
        from ._by_statistics import BY_STATISTICS  # here: compiled for Triton alone

        stats = self._whole_by_triton(BY_STATISTICS.find(operands, self.eps), operands.input)
        return BY_STATISTICS(stats, activation, operands, group_name(self.group))

    def for_recompute(self, kernel: ModuleType, operands: Operands, stats: Tensor) -> NormSpec | None:
        """By the statistics as given, without a collective."""
        if kernel is not native:
            return None
        return BatchNormSpec(self.activation, Running(stats[0], stats[1], None, None), False, self.eps)


def _in_float32(whole: Moments, eps: float) -> Tensor:
    """The statistics of all ranks as Triton's kernels save them, (5, C)."""
    mean, var = whole.mean, whole.var(correction=0)
    high = mean.float()
    low = mean - high if whole.low is None else whole.low
    count = torch.as_tensor(whole.count, device=mean.device).expand_as(mean)
    return torch.stack([t.float() for t in (high, var, (var + eps).rsqrt(), low, count)])


def of_all_ranks(moments: Moments, group: dist.ProcessGroup | None) -> Moments:
    """The moments of all ranks' sets together, without gradient; every rank must call it. mean, m2: (C,).

    The count comes back as a 0-dim tensor, so that no device is read.
    """
    mean = moments.mean
    count = _count(moments)
    low = [] if moments.low is None else [moments.low]
    if wide_dtype(mean.device) != torch.float64:
        parts = gather([count, mean.detach(), moments.m2.detach(), *low], group)
        counts, means, m2s, *lows = (torch.stack(column) for column in zip(*parts, strict=True))
        whole = Moments(counts, means, m2s, None, lows[0] if lows else None).merge_along(0)
        return Moments(counts.sum(), whole.mean, whole.m2, moments.dim, whole.low)
    rows = gather_rows([count, mean, moments.m2, *low], group)  # in float64: counts are exact up to 2^53
    counts, means, m2s, *lows = rows.split([1, *[len(mean)] * (2 + len(low))], dim=1)
    whole = Moments(counts, means + lows[0] if lows else means, m2s).merge_along(0)
    found = whole.mean.to(mean.dtype)
    rest = (whole.mean - found.double()).to(mean.dtype).to(mean.device) if lows else None
    m2 = whole.m2.to(mean.dtype).to(mean.device)
    return Moments(counts.sum().long().to(mean.device), found.to(mean.device), m2, moments.dim, rest)


def _count(moments: Moments) -> Tensor:
    """(1,) int64, where the moments are: nothing is copied to a device for it, and no graph holds it as a constant."""
    count, mean = moments.count, moments.mean
    if isinstance(count, Tensor):
        return count.to(mean.device).flatten()[:1]
    return mean.new_full((1,), count, dtype=torch.int64)


def _attached(own: Moments, whole: Moments, group: dist.ProcessGroup | None) -> Moments:
    """`whole`, whose gradient reaches this rank's own moments and comes from all ranks."""
    count = _count(own).to(own.mean.dtype)
    low = None if own.low is None or whole.low is None else (own.low - whole.low).detach()
    mean, m2 = _Whole.apply(own.mean, own.m2, count, whole.mean, whole.m2, whole.count, low, group)
    return Moments(whole.count, mean, m2, own.dim, whole.low)


class _Whole(torch.autograd.Function):
    """(mean, m2) of this rank -> those of all ranks, which are known. (C,) each.

    mean = S count_r mean_r / count, m2 = S m2_r + count_r (mean_r - mean)^2. low: what mean_r - mean lacks.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        own_mean, _, own_count, mean, m2, count, low, group = arguments
        mean, m2 = mean.clone(), m2.clone()
        ctx.save_for_backward(own_mean, mean)
        ctx.own_count, ctx.count, ctx.low, ctx.group = own_count, count, low, group
        return mean, m2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        own_mean, mean = ctx.saved_tensors
        wanted = torch.stack(gradients)
        # a compiled graph holds the first derivative alone
        dmean, dm2 = total(wanted, ctx.group) if torch.compiler.is_compiling() else _Sum.apply(wanted, ctx.group)
        apart = own_mean - mean if ctx.low is None else own_mean - mean + ctx.low
        own = ctx.own_count * (dmean / ctx.count + 2 * apart * dm2)
        return own, dm2, *(None,) * 6


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the ranks, on every rank."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        value, group = arguments
        ctx.group = group
        return total(value, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return _Sum.apply(gradients[0], ctx.group), None
