"""Batch renormalization as a function: batch norm, corrected within limits to what evaluation will do.

Rules: r and d are constants for the backward; they come from the running statistics as they were before this batch
moved them. An activation checkpoint recomputes the forward after they have moved, so the original r and d have to be
found again: `Recent` remembers those of the last forwards, and the recomputation knows its own by the batch's moments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _shapes
from .._activation import NONE, Activation, resolve
from ..kernels import composed, native
from ..moments import Moments, accumulator_dtype
from . import _running
from ._choose import choose, is_exporting, is_transformed
from ._fused import Call, Forwarded, Gradients, Needs, Operands, run
from ._running import Running
from .batch_norm import apply as apply_batch_norm
from .batch_norm import prepare, running_of

IN_FLIGHT = 16  # forwards remembered; micro-batches between a forward and its recomputation are rarely more
SAME = 1e-2  # of a standard deviation: how near two batches' moments are when one is a recomputation of the other


class Limits(NamedTuple):
    """How far the correction may go: r in [1/r_max, r_max], d in [-d_max, d_max]."""

    r_max: float | Tensor
    d_max: float | Tensor


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
        residual, activation, mask: as in :func:`normkit.functional.batch_norm`.

    Returns:
        The input's shape, dtype and memory format.

    Note: under activation checkpointing use the layer; the function has no memory of the original forward.

    Raises:
        ValueError: limits out of range, no running statistics in training, and whatever batch_norm raises.

    Reference: Ioffe (2017), Batch Renormalization. https://arxiv.org/abs/1702.03275
    """
    running = running_of(running_mean, running_var, training, momentum)
    if running is None:
        raise ValueError("batch_renorm corrects towards the running statistics: give running_mean and running_var")
    verify_limits(r_max, d_max)
    return apply(
        input, running, weight, bias, training, eps, Limits(r_max, d_max), None, residual=residual,
        activation=resolve(activation), mask=mask,
    )  # fmt: skip


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
        if type(moments.mean) is Tensor:  # no fake tensors
            self._entries.appendleft((moments.mean.detach(), _std(moments).detach(), r, d))

    def of(self, moments: Moments, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """The correction of the forward that saw this batch; (r, d) as given if no forward did."""
        mean, std = moments.mean.detach(), _std(moments).detach()
        known = [entry for entry in self._entries if entry[0].shape == mean.shape and entry[0].device == mean.device]
        if not known:
            return r, d
        means, stds, rs, ds = (torch.stack(column) for column in zip(*known, strict=True))
        # in units of the standard deviation; the smallest number keeps a constant channel's 0 / 0 at 0
        unit = std + torch.finfo(std.dtype).tiny
        distance = torch.maximum((means - mean).abs() / unit, (stds - std).abs() / unit).amax(1)
        nearest = distance.argmin()  # the newest of equals: the same batch may come again
        same = distance[nearest] <= SAME
        return torch.where(same, rs[nearest], r), torch.where(same, ds[nearest], d)


def apply(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    limits: Limits,
    recent: Recent | None,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
    small_batch: str = "error",
) -> Tensor:
    """What :func:`batch_renorm` and the layers share; without running statistics it is batch norm."""
    if training and input.dim() > 1:
        training, mask = prepare(input, running, weight, bias, training, eps, residual, mask, small_batch)
    if not training or running is None or input.dim() < 2:
        return apply_batch_norm(
            input, running, weight, bias, training, eps, residual=residual, activation=activation, mask=mask,
            small_batch=small_batch,
        )  # fmt: skip
    others = (residual, weight, bias, running.mean, running.var)
    path, _ = choose("batch_renorm", input, activation, mask, others)
    if path == "native" and input.numel() and not torch.compiler.is_compiling():
        call = BatchRenormCall(native, activation, running, eps, limits, recent)
        return run(call, input, weight, bias, residual)
    wide = input.to(accumulator_dtype(input))
    moments = Moments.of(wide, _shapes.batch_dims(input.dim()), mask)
    r, d = _correction(moments, running, eps, limits, recent)
    _running.move(running, moments)
    return _composed(wide, moments, r, d, weight, bias, eps, residual, activation, mask, input.dtype)


def _composed(
    wide: Tensor,
    moments: Moments,
    r: Tensor,
    d: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: Activation,
    mask: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """By differentiable operations. wide: (N, C, *) in the accumulator's dtype; r, d: (C,)."""
    shape = _shapes.channel_shape(wide.dim(), wide.shape[1])
    xhat = composed.standardize(wide, moments, eps, mask) * r.reshape(shape) + d.reshape(shape)
    return composed.finish_channels(xhat, weight, bias, residual, activation, mask, dtype)


@dataclass(slots=True, eq=False)
class BatchRenormCall(Call):
    """One batch renorm on the native kernels: batch norm with the weight r * weight and the bias d * weight + bias."""

    running: Running
    eps: float
    limits: Limits
    recent: Recent | None

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (5, C) float64: mean, biased var, rstd, r, d; bits)."""
        input, weight, bias, residual = of
        found = self.kernel.batch_norm_statistics(input)
        mean, var, _ = found
        count = input.numel() // input.shape[1]
        r, d = _correction(Moments(count, mean, var * count), self.running, self.eps, self.limits, self.recent)
        y, stats, bits = self.kernel.batch_norm_inference(
            input, mean, var, *_corrected(weight, bias, r, d), residual, self.activation.code, self.activation.param,
            self.eps, save_for_backward=save,
        )  # fmt: skip
        _running.move_native(self.running, found, count)
        return y, None if stats is None else torch.cat([stats, r[None], d[None]]), bits

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        input, weight, bias, residual = of
        r, d = stats[3], stats[4]
        needed = (needs[0], needs[1], needs[1] or needs[2], needs[3])
        dx, dscale, dshift, dresidual = self.kernel.batch_norm_backward(
            dy, input, *_corrected(weight, bias, r, d), residual, bits, stats[:3], self.activation.code,
            self.activation.param, training=True, needs=needed,
        )  # fmt: skip
        dweight = (r * dscale + d * dshift).to(weight.dtype) if needs[1] and weight is not None else None
        dbias = dshift.to(bias.dtype) if needs[2] and bias is not None else None
        return dx, dweight, dbias, dresidual

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations."""
        input, weight, bias, residual = of
        wide = input.to(accumulator_dtype(input))
        moments = Moments.of(wide, _shapes.batch_dims(input.dim()))
        return _composed(
            wide, moments, stats[3], stats[4], weight, bias, self.eps, residual, activation, None, input.dtype
        )

    def again(self, stats: Tensor) -> None:
        """The correction comes from running statistics that have moved by then."""


def _corrected(weight: Tensor | None, bias: Tensor | None, r: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """The weight and bias that batch norm takes instead: r * weight, d * weight + bias, in float64."""
    scale, shift = (r, d) if weight is None else (r * weight, d * weight)
    return scale, shift if bias is None else shift + bias


def _correction(
    moments: Moments, running: Running, eps: float, limits: Limits, recent: Recent | None
) -> tuple[Tensor, Tensor]:
    """(r, d): (C,), without gradient."""
    r, d = correction(moments, running, eps, limits)
    if torch.compiler.is_compiling():
        return (r, d) if is_exporting() else (_kept(r), _kept(d))
    if recent is None or is_transformed():
        return r, d
    if _running.is_recomputation():
        return recent.of(moments, r, d)
    recent.remember(moments, r, d)
    return r, d


@torch.no_grad()
def correction(moments: Moments, running: Running, eps: float, limits: Limits) -> tuple[Tensor, Tensor]:
    """``r = clip(sigma_B / sigma)`` and ``d = clip((mean_B - mean) / sigma)``, (C,) each, without gradient."""
    mean = moments.mean.detach()
    sigma = (running.var.to(mean.dtype) + eps).sqrt()
    r = (_var(moments).detach() + eps).sqrt() / sigma
    d = (mean - running.mean.to(mean.dtype)) / sigma
    r_max, d_max = (torch.as_tensor(limit, dtype=mean.dtype, device=mean.device) for limit in limits)
    return r.clamp(1 / r_max, r_max), d.clamp(-d_max, d_max)


@torch.library.custom_op("normkit::kept", mutates_args=())
def _kept(value: Tensor) -> Tensor:
    """The value, as an operator that a compiled backward saves and never recomputes.

    The partitioner of compiled graphs recomputes cheap values from the graph's inputs, also from buffers that the graph
    has overwritten by then: r and d would come from the statistics after the move.
    """
    return value.clone()


@_kept.register_fake
def _kept_fake(value: Tensor) -> Tensor:
    return torch.empty_like(value)


def _var(moments: Moments) -> Tensor:
    """The biased variance (C,); 0 for an empty set."""
    count = moments.count
    return moments.m2 / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))


def _std(moments: Moments) -> Tensor:
    return _var(moments).sqrt()
