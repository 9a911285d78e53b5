"""The one place that moves running statistics.

    running = (1 - factor) * running + factor * new        factor = momentum, or 1 / batches counted (momentum None)
    new mean = the batch's mean, new var = m2 / (count - 1)     (unbiased)

Rules, each a defect of others that users met:
- buffers are written in place, in their own dtype; the new value is computed in float64, or as wide as the device can;
- a batch that is empty, of one value, or not finite (in the buffer's dtype) moves nothing and is not counted;
- an activation checkpoint's recomputation moves nothing: it runs inside backward;
- under torch.func the update is an autograd.Function, so that grad, jvp and vmap may run over it;
- where Python may not branch on values (compiled, transformed, masked, on a GPU) a torch.where decides.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, Union

import torch
from torch import Tensor

from .. import _shapes
from ..kernels import core, native, triton
from ..moments import Moments
from . import _storage
from .choose import has_memory, is_transformed, may_look
from .functionalize import is_functionalized, write_through

Update = Union[Moments, "Averages"]  # what a batch moves the running statistics by


class Averages(NamedTuple):
    """What instance norm moves by: the averages over samples of mean and unbiased variance.

    mean, var: (C,). values: how many are behind each. samples: how many were averaged.
    """

    mean: Tensor
    var: Tensor
    values: int | Tensor
    samples: int | Tensor

    def merge(self, other: Averages) -> Averages:
        """The averages over the samples of both."""
        samples = self.samples + other.samples
        share = other.samples / torch.as_tensor(samples, dtype=self.mean.dtype, device=self.mean.device).clamp(min=1)
        mean = self.mean + (other.mean - self.mean) * share
        var = self.var + (other.var - self.var) * share
        values = torch.maximum(*(torch.as_tensor(v, device=self.mean.device) for v in (self.values, other.values)))
        return Averages(mean, var, values, samples)


class Running(NamedTuple):
    """Where running statistics live and how they move.

    mean, var: (C,) buffers. batches: 0-dim int64 count of batches, or None. momentum: the weight of the new value, or
    None for the cumulative average (which needs `batches`). deferred: a list that collects the moments instead, while
    :func:`normkit.deferred_statistics` holds the update back.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    momentum: float | None
    deferred: list[Any] | None = None  # of Update; a list of Moments alone is welcome too


def move(running: Running, moments: Moments) -> None:
    """Move the running statistics by one batch. moments: mean (C,), m2 (C,)."""
    if is_recomputation():
        return
    if running.deferred is not None:
        running.deferred.append(moments.detach())
        return
    apply_update(running, moments)


def move_by_average(
    running: Running, mean: Tensor, var: Tensor, count: int | Tensor, samples: int | Tensor = 1
) -> None:
    """Move by averages over samples (instance norm). mean, unbiased var: (C,); count: values behind each, 2 or more."""
    if is_recomputation():
        return
    update = Averages(mean.detach(), var.detach(), count, samples)
    if running.deferred is not None:
        running.deferred.append(update)
        return
    apply_update(running, update)


def apply_update(running: Running, update: Update) -> None:
    """Move by what a batch, or several merged, left."""
    if isinstance(update, Averages):
        _apply(running, update.mean, update.var, update.values, update.samples)
    else:
        _apply(running, update.mean.detach(), update.m2.detach(), update.count, None)


def is_finite(update: Update, dtype: torch.dtype) -> bool:
    """Whether what a batch left is finite in the buffers' dtype; reads the values."""
    if isinstance(update, Averages):
        var = update.var
    else:
        count = torch.as_tensor(update.count, device=update.m2.device)
        var = update.m2 / (count - 1).clamp(min=1)
    return bool((update.mean.to(dtype).isfinite() & var.to(dtype).isfinite()).all())


def for_kernel(running: Running, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None, float | None] | None:
    """(mean, var, batches, momentum) for a kernel that moves them itself by the batch `input`, or None: it may not."""
    mean, var, batches, momentum, deferred = running
    plain = all(t.is_contiguous() and t.dtype in triton.DTYPES and t.device == input.device for t in (mean, var))
    known = isinstance(momentum, (int, float)) or (momentum is None and batches is not None)
    counted = batches is None or (batches.dtype == torch.int64 and batches.device == input.device)
    several = _shapes.values_per_channel(input.shape) > 1
    if plain and known and counted and several and mean.numel() and deferred is None and not is_recomputation():
        return mean, var, batches, momentum
    return None


def move_by_stats(running: Running, stats: Tensor, count: int | Tensor) -> None:
    """Move by a kernel's statistics, in one call of the core where it takes these buffers.

    stats: (3, C) float64: mean, biased variance; later rows are not read. count: a tensor on a device, which nobody
    waits for.
    """
    if isinstance(count, Tensor):
        move(running, Moments.of_stats(count, stats[0], stats[1]))
        return
    if count < 2 or is_recomputation():
        return
    mean, var, batches, momentum, deferred = running
    moved = None
    if deferred is None and native.available() and has_memory():
        moved = native.move_running(stats, count, mean, var, batches, momentum)
    if moved is None:
        move(running, Moments.of_stats(count, stats[0], stats[1]))
    elif not moved:
        warn_not_finite()


def is_recomputation() -> bool:
    """Whether this forward runs inside a backward, as an activation checkpoint's recomputation does."""
    # Dynamo rejects the call; compiled checkpointing updates once already.
    return not torch.compiler.is_compiling() and core.is_recomputation()


def _apply(running: Running, mean: Tensor, spread: Tensor, count: int | Tensor, samples: int | Tensor | None) -> None:
    """spread: m2 of a batch's moments (samples None), or the unbiased variance averaged over `samples`."""
    if isinstance(running.momentum, str):
        _shapes.verify_momentum("batch_norm", running.momentum)
    if not isinstance(count, Tensor):  # a number, maybe a symbolic one
        if count < 2:
            return
    elif count.dim() and mean.shape[-1] == 0:
        return  # a mask's counts are one per channel: without a channel there is none
    if not torch.compiler.is_compiling():
        _storage.verify((running.mean, running.var))
    arguments = (running.mean, running.var, running.batches, mean, spread, count, running.momentum, samples)
    if torch.compiler.is_compiling() or not is_transformed():
        # a graph is of detached values: the exporter of torch 2.4 fails on a batch norm beside a write under no_grad
        ok = _written(*arguments) if torch.compiler.is_compiling() else _write(*arguments)
        if may_look(ok) and not ok:
            warn_not_finite()
    elif is_functionalized():
        write_through(_write, _Move.apply, arguments)
    else:
        _Move.apply(*arguments)


def _written(
    running_mean: Tensor, running_var: Tensor, batches: Tensor | None, mean: Tensor, spread: Tensor,
    count: int | Tensor, momentum: float | None, samples: int | Tensor | None,
) -> Tensor:  # fmt: skip
    """Write the buffers unless the batch is unfit; returns whether it was finite. Leading axes: a batch of buffers."""
    if isinstance(count, Tensor) and count.dim():
        count = count.amax(-1, keepdim=True)  # the mask does not tell channels apart
    var = spread / (count - 1) if samples is None else spread
    finite = (mean.to(running_mean.dtype).isfinite() & var.to(running_var.dtype).isfinite()).all(-1)
    enough = count >= 2 if isinstance(count, Tensor) else torch.ones_like(finite)
    if enough.dim() > finite.dim():
        enough = enough.squeeze(-1)
    ok = finite & enough
    if batches is not None:
        batches.add_(ok)
    if momentum is not None:
        factor: float | Tensor = momentum.detach().to(mean.dtype) if isinstance(momentum, Tensor) else momentum
    elif batches is not None:
        factor = 1.0 / batches.to(mean.dtype).clamp(min=1).unsqueeze(-1)
    else:
        raise ValueError("momentum=None (the cumulative average) needs num_batches_tracked to count the batches")
    for buffer, new in ((running_mean, mean), (running_var, var)):
        wide = buffer.to(torch.promote_types(buffer.dtype, new.dtype))
        moved = wide * (1 - factor) + new * factor  # not by the difference: Inf - Inf is NaN
        buffer.copy_(torch.where(ok.unsqueeze(-1), moved.to(buffer.dtype), buffer))
    return finite | ~enough


_write = torch.no_grad()(_written)


class _Move(torch.autograd.Function):
    """`_write` under torch.func transforms, which refuse a plain in-place update of captured buffers."""

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return _write(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> tuple[None, ...]:
        return (None,) * 8

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int | None]:
        """Buffers of each sample are updated each; shared buffers once, by the moments of all samples together."""
        size = info.batch_size

        def front(index: int) -> Any:
            value, axis = arguments[index], in_dims[index]
            if not isinstance(value, Tensor):
                return value
            return value.expand(size, *value.shape) if axis is None else value.movedim(axis, 0)

        momentum, samples = arguments[6], front(7)
        mean, spread, count = front(3), front(4), front(5)
        if in_dims[0] is not None:
            batches = front(2)
            if isinstance(count, Tensor) and count.dim() == 1:
                count = count.unsqueeze(-1)
            return _Move.apply(front(0), front(1), batches, mean, spread, count, momentum, samples), 0
        if samples is not None:
            each = torch.as_tensor(samples, device=mean.device).expand(size, *mean.shape[1:]).to(mean.dtype)
            samples = each.sum(0)
            share = each / samples.clamp(min=1)  # a sample without a countable value weighs nothing
            mean, spread = (mean * share).sum(0), (spread * share).sum(0)
            count = count.amax(0) if isinstance(count, Tensor) else count
        else:
            if isinstance(count, Tensor) and count.dim() < mean.dim():  # without values it is one for each channel
                count = count.reshape(size, *[1] * (mean.dim() - 1))
            merged = Moments(count, mean, spread).merge_along(0)
            mean, spread, count = merged.mean, merged.m2, merged.count
        return _Move.apply(*arguments[:3], mean, spread, count, momentum, samples), None


def warn_not_finite() -> None:
    warnings.warn(
        "a batch with NaN or Inf reached a normalization layer in training: its running statistics were not moved and "
        "the batch was not counted. The output still carries the non-finite values.",
        RuntimeWarning,
        stacklevel=2,
    )
