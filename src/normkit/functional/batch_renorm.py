"""Batch renormalization as a function: batch norm, corrected within limits to what evaluation will do.

Rules: r and d are constants for the backward; they come from the running statistics as they were before this batch
moved them. An activation checkpoint recomputes the forward after they have moved, so the original r and d have to be
found again: `Recent` remembers those of the last forwards, and the recomputation knows its own by the batch's moments.
"""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import _operands, _shapes
from .._activation import Activation, resolve
from .._fx import traceable
from .._operands import Gradients, Maybe, Modulate, Needs, Operands, Saved, in_dtype_of
from ..kernels import composed, triton
from ..moments import Moments, moments_of
from . import running
from ._operator import Asked, define, register
from .batch_norm import BatchNormSpec, running_of
from .choose import is_exporting, is_transformed, may_look
from .road import run
from .running import Running
from .spec import NormSpec

IN_FLIGHT = 64  # forwards remembered: a pipeline has seldom more micro-batches between a forward and its recomputation
# How near the moments of a batch and of its recomputation are, in standard deviations: the noise of float32 operations
# before the layer. Two batches of m values differ by 1 / sqrt(m) in some channel: 1e-3 for a million.
SAME = 1e-5


class Limits(NamedTuple):
    """How far the correction may go: r in [1/r_max, r_max], d in [-d_max, d_max]."""

    r_max: float | Tensor
    d_max: float | Tensor


@traceable
def batch_renorm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    residual: Tensor | None = None,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
    modulate: Modulate = None,
) -> Tensor:
    r"""Batch renormalization: the batch's own statistics, corrected within limits towards the running ones.

    .. math:: y = \mathrm{activation}\Big(\Big(\frac{x - \mathrm{mean}}{\sigma} r + d\Big) \mathrm{weight} +
              \mathrm{bias} + \mathrm{residual}\Big), \quad r = \mathrm{clip}(\sigma/\sigma_\mathrm{run}, 1/r_{max},
              r_{max}), \quad d = \mathrm{clip}((\mathrm{mean} - \mathrm{mean}_\mathrm{run})/\sigma_\mathrm{run},
              -d_{max}, d_{max})

    sigma is sqrt(var + eps), of the batch and of the running statistics; r and d are constants for the backward.

    Args:
        input: (N, C, *), real floating point.
        running_mean, running_var: (C,), as they were before this batch; moved in place after use.
        weight, bias: (C,) or None (1 and 0).
        training: False is batch norm by the running statistics.
        momentum: the weight of the new value.
        eps: added to each variance, inside the square root.
        r_max: 1 or more; with d_max=0, r_max=1 is batch norm. d_max: 0 or more.
        residual, activation, mask, modulate: as in :func:`normkit.functional.batch_norm`.

    Returns:
        The input's shape, dtype and memory format.

    Note: under activation checkpointing use the layer; the function has no memory of the original forward.

    Raises:
        ValueError: limits out of range, no running statistics in training, and whatever batch_norm raises.

    Reference: Ioffe (2017), Batch Renormalization. https://arxiv.org/abs/1702.03275
    """
    statistics = running_of(running_mean, running_var, training, momentum)
    if statistics is None:
        raise ValueError("batch_renorm corrects towards the running statistics: give running_mean and running_var")
    verify_limits(r_max, d_max)
    if input.dim() == 1 and input.numel() == 0:
        return input.clone()  # torch accepts an empty vector
    norm = corrected(BatchNormSpec(resolve(activation), statistics, training, eps), Limits(r_max, d_max), None)
    return run(norm, input, weight, bias, residual, mask, modulate)


def verify_limits(r_max: float, d_max: float) -> None:
    """Raise unless r_max >= 1 and d_max >= 0."""
    if not r_max >= 1.0:
        raise ValueError(f"r_max must be 1 or more (1 is no scaling), got {r_max}")
    if not d_max >= 0.0:
        raise ValueError(f"d_max must be 0 or more (0 is no shift), got {d_max}")


class Recent:
    """The corrections of a layer's last training forwards, for the recomputations of activation checkpoints.

    Empty in every copy and pickle: the forwards belong to the layer that ran them.
    """

    def __init__(self) -> None:
        self._entries: deque[tuple[Tensor, Tensor, Tensor, Tensor]] = deque(maxlen=IN_FLIGHT)

    def __reduce__(self) -> tuple[type[Recent], tuple[()]]:
        return Recent, ()

    def remember(self, moments: Moments, r: Tensor, d: Tensor) -> None:
        """Keep a forward's correction. All (C,)."""
        if type(moments.mean) is Tensor and moments.mean.numel():  # no fake tensors, nothing of no channels
            self._entries.appendleft((moments.mean.detach(), _std(moments), r, d))

    def recall(self, moments: Moments, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """The correction of the forward that saw this batch; (r, d) as given if no forward did."""
        mean, std = moments.mean.detach(), _std(moments)
        known = [entry for entry in self._entries if entry[0].shape == mean.shape and entry[0].device == mean.device]
        if not known:
            return r, d
        means, stds, rs, ds = (torch.stack(column) for column in zip(*known, strict=True))
        # in units of the standard deviation; the smallest number keeps a constant channel's 0 / 0 at 0
        unit = std + torch.finfo(std.dtype).tiny
        distance = torch.maximum((means - mean).abs() / unit, (stds - std).abs() / unit).amax(1)
        nearest = distance.argmin()  # the newest of equals: the same batch may come again
        same = distance[nearest] <= SAME
        if may_look(same) and not same:
            warnings.warn(
                f"an activation checkpoint recomputes a batch that is none of the last {IN_FLIGHT} of this layer: its "
                "r and d come from the running statistics as they are now, so its gradient is not exact",
                RuntimeWarning,
                stacklevel=2,
            )
        return torch.where(same, rs[nearest], r), torch.where(same, ds[nearest], d)


def corrected(norm: BatchNormSpec, limits: Limits, recent: Recent | None) -> BatchNormSpec:
    """The batch norm, corrected; `norm` itself in evaluation and without running statistics."""
    if not norm.training or norm.running is None:
        return norm
    return BatchRenormSpec(norm.activation, norm.running, True, norm.eps, norm.small_batch, limits, recent)


@dataclass(slots=True, eq=False)
class BatchRenormSpec(BatchNormSpec):
    """One batch renorm in training; on kernels batch norm with the weight r * weight, the bias d * weight + bias."""

    # Limits, and a plain tuple by default: an older Dynamo takes no default of a type of ours
    limits: tuple[float | Tensor, float | Tensor] = (1.0, 0.0)
    recent: Recent | None = None

    name: ClassVar[str] = "batch_renorm"
    has_aten: ClassVar[bool] = False

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """The core's one call knows no correction."""
        return None

    def why_not_native(self, operands: Operands) -> str | None:
        """The correction is of whole batches."""
        if operands.mask is not None:
            return "a mask is given"
        return None if operands.input.numel() else "the batch is empty"

    def why_not_operator(self, kernel: ModuleType, operands: Operands) -> str | None:
        """Triton has one of the statistics and one of what follows r and d."""
        return None if kernel is triton else f"{self.name} has no operator for compiled graphs"

    def why_not_exported(self) -> str | None:
        """PyTorch has no such norm."""
        return f"PyTorch has no {self.name}"

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (5, C): mean, biased var, rstd, r, d. Triton's (7, C), r and d last."""
        assert self.running is not None
        if kernel is triton:
            return self._forward_by_triton(operands, save)
        found = kernel.batch_norm_statistics(operands.input)
        mean, var, _ = found
        count = operands.input.numel() // operands.input.shape[1]
        r, d = _correction(self, Moments.of_stats(count, mean, var))
        y, saved = kernel.batch_norm_inference(
            _with_correction(operands, r, d), mean, var, self.activation, self.eps, save=save
        )
        running.move_by_stats(self.running, found, count)
        return y, None if saved is None else saved._replace(stats=torch.cat([saved.stats, r[None], d[None]]))

    def _forward_by_triton(self, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """In float32, masks too; the pass that normalizes moves the running statistics, after r and d are found."""
        assert self.running is not None
        stats = triton.batch_norm_statistics(operands, self.eps)
        moments = moments_of(stats)
        r, d = _correction(self, moments)
        moved = running.for_kernel(self.running, operands.input)
        y, saved = triton.batch_norm_by_statistics(
            _with_correction(operands, r, d), stats, self.activation, save=save, running=moved
        )
        if moved is None:
            running.move(self.running, moments)
        return y, None if saved is None else saved._replace(stats=torch.cat([stats, r[None], d[None]]))

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        weight, bias, (r, d) = operands.weight, operands.bias, saved.stats[-2:]
        dx, dscale, dshift, dresidual = kernel.batch_norm_backward(
            dy, _with_correction(operands, r, d), saved._replace(stats=saved.stats[:-2]), self.activation,
            needs._replace(bias=needs.weight or needs.bias), training=True,
        )  # fmt: skip
        dweight = (r * dscale + d * dshift).to(weight.dtype) if needs.weight and weight is not None else None
        return Gradients(dx, dweight, in_dtype_of(bias, dshift, needs.bias), dresidual)

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations."""
        wide = composed.widened(operands)
        moments = Moments.of(wide, _shapes.batch_dims(wide.dim()), operands.mask)
        if stats is None:
            assert self.running is not None
            r, d = _correction(self, moments)
            running.move(self.running, moments)
        else:
            r, d = stats[-2:]
        shape = _shapes.channel_shape(wide.dim(), wide.shape[1])
        xhat = composed.standardize(wide, moments, self.eps, operands.mask) * r.reshape(shape) + d.reshape(shape)
        return composed.finish_channels(xhat, operands, self.activation)

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """The statistics, r and d from them, and the rest by both; the running statistics move after use."""
        assert self.running is not None
        from ._by_statistics import BY_STATISTICS  # here: compiled for Triton alone

        stats = BY_STATISTICS.find(operands, self.eps)
        moments = moments_of(stats)
        r, d = _correction(self, moments)
        y = BY_STATISTICS(stats, activation, _with_correction(operands, r, d))
        running.move(self.running, moments)
        return y

    def for_recompute(self, kernel: ModuleType, operands: Operands, stats: Tensor) -> NormSpec | None:
        """The correction comes from running statistics that have moved by then."""
        return None


def _with_correction(operands: Operands, r: Tensor, d: Tensor) -> Operands:
    """With the weight and bias that batch norm takes instead: r * weight, d * weight + bias, as wide as r and d."""
    weight, bias = operands.weight, operands.bias
    scale, shift = (r, d) if weight is None else (r * weight, d * weight)
    return _operands.under(operands, scale, shift if bias is None else shift + bias)


def _correction(norm: BatchRenormSpec, moments: Moments) -> tuple[Tensor, Tensor]:
    """(r, d): (C,), without gradient."""
    assert norm.running is not None
    recent = norm.recent
    r, d = correction(moments, norm.running, norm.eps, norm.limits)
    if torch.compiler.is_compiling():
        return (r, d) if is_exporting() else (_kept(r), _kept(d))
    if recent is None or is_transformed():
        return r, d
    if running.is_recomputation():
        return recent.recall(moments, r, d)
    recent.remember(moments, r, d)
    return r, d


def correction(
    moments: Moments, target: Running, eps: float, limits: tuple[float | Tensor, float | Tensor]
) -> tuple[Tensor, Tensor]:
    """``r = clip(sigma_B / sigma)`` and ``d = clip((mean_B - mean) / sigma)``, (C,) each, without gradient."""
    mean = moments.mean.detach()  # not by no_grad, beside which torch 2.4 cannot export a batch norm
    sigma = (target.var.detach().to(mean.dtype) + eps).sqrt()
    r = (_var(moments) + eps).sqrt() / sigma
    shift = mean - target.mean.detach().to(mean.dtype)
    d = (shift if moments.low is None else shift + moments.low.detach()) / sigma
    r_max, d_max = (
        limit.detach().to(mean) if isinstance(limit, Tensor) else mean.new_full((), limit) for limit in limits
    )  # made on the device: a number that is copied there waits for it
    return r.clamp(1 / r_max, r_max), d.clamp(-d_max, d_max)


class _Kept(Asked):
    """The value, as an operator that a compiled backward saves and never recomputes.

    The partitioner of compiled graphs recomputes cheap values from the graph's inputs, also from buffers that the graph
    has overwritten by then: r and d would come from the statistics after the move.
    """

    def make(self) -> None:
        self.forward = define(self.name, "(Tensor value) -> Tensor", torch.clone, torch.empty_like, device=None)

    def __call__(self, value: Tensor) -> Tensor:
        register(self.name)
        return self.forward(value)


_kept = _Kept("kept")


def _var(moments: Moments) -> Tensor:
    """The biased variance (C,), without gradient; 0 for an empty set."""
    count = moments.count
    return moments.m2.detach() / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))


def _std(moments: Moments) -> Tensor:
    return _var(moments).sqrt()
