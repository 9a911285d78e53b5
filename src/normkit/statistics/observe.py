"""Stand in for a layer's forward: see its input, and let it normalize by statistics other than its own.

`replaced` puts a stand-in where a layer's `forward` is, and takes it away again; nothing else of the layer is touched:
no hook, no counter, no buffer. `under` lends a layer statistics for one call by exchanging the entries of its buffers,
so any forward that reads `self.running_mean` and `self.running_var` in evaluation works, whoever wrote it.
`by_own_statistics` is the fast road for forwards that are known: one kernel gives the output and the moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .. import _shapes
from .._activation import NONE, Activation
from .._operands import Operands
from ..functional.batch_norm import BatchNormSpec
from ..functional.choose import choose
from ..functional.road import run
from ..functional.running import Running
from ..kernels import composed, native
from ..moments import Moments
from ..nn._base import TrackedNorm
from .measure import Sample
from .targets import statistics

Forward = Callable[..., Any]
_MARK = "_normkit_stands_in"


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside the block each layer's forward is the given one.

    Raises RuntimeError where a layer already has a stand-in: two would measure each other.
    """
    for layer in forwards:
        if hasattr(layer.__dict__.get("forward"), _MARK):
            raise RuntimeError(
                "normkit.adapt or normkit.recalibrate is already at work on this model: leave that block first"
            )
    before = {layer: layer.__dict__.get("forward") for layer in forwards}
    try:
        for layer, forward in forwards.items():
            layer.__dict__["forward"] = _marked(forward)
        yield
    finally:
        for layer, own in before.items():
            if own is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = own


@contextmanager
def under(layer: nn.Module, mean: Tensor | None, var: Tensor | None) -> Iterator[None]:
    """Inside the block the layer is in eval mode and its statistics are these, in the buffers' dtype.

    None, None: it has no statistics, so it normalizes by its input's own and moves nothing.
    """
    buffers, training = layer._buffers, layer.training
    own = buffers["running_mean"], buffers["running_var"]
    tracks = getattr(layer, "track_running_stats", None)
    if training:
        layer.training = False
    if mean is None and tracks is not None:
        layer.track_running_stats = False  # type: ignore[assignment]  # nn.Module types attributes as Tensor | Module
    buffers["running_mean"] = _like(mean, own[0], layer)
    buffers["running_var"] = _like(var, own[1], layer)
    try:
        yield
    finally:
        buffers["running_mean"], buffers["running_var"] = own
        if training:
            layer.training = True
        if mean is None and tracks is not None:
            layer.track_running_stats = tracks


def is_known(layer: nn.Module) -> bool:
    """Whether the layer's forward is torch's or normkit's own batch norm, so that `by_own_statistics` stands for it."""
    forward = type(layer).forward
    if not isinstance(layer, _BatchNorm) or "forward" in layer.__dict__ or not layer.eps > 0:
        return False
    torchs = forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return torchs or (isinstance(layer, TrackedNorm) and forward.__module__.startswith("normkit.nn."))


def by_own_statistics(
    layer: nn.Module, input: Tensor, residual: Tensor | None = None, mask: None = None
) -> tuple[Tensor, Sample]:
    """A known layer's output under its input's statistics, never another rank's, and these statistics.

    input: (N, C, *), more than one value per channel.
    """
    assert isinstance(layer, _BatchNorm)
    layer._check_input_dim(input)
    weight, bias = layer.weight, layer.bias
    activation = layer._resolved_activation() if isinstance(layer, TrackedNorm) else NONE
    norm = BatchNormSpec(activation, None, True, layer.eps)
    _, operands = norm.verified(Operands(input, weight, bias, residual))
    if choose(norm, operands)[0] != "native":
        y, moments = _by_any_path(layer, input, residual, activation)
        return y, Sample.of(moments)
    fused = norm.is_fused(native, operands)
    given = operands if fused else operands._replace(residual=None)
    y, saved = native.batch_norm_forward(given, activation if fused else NONE, layer.eps, save=False)
    y = y if fused else composed.add_and_activate(y, operands, activation)
    return y, Sample(_shapes.values_per_channel(input.shape), saved.stats)


def _by_any_path(
    layer: _BatchNorm, input: Tensor, residual: Tensor | None, activation: Activation
) -> tuple[Tensor, Moments]:
    seen: list[Moments] = []
    running = Running(*statistics(layer), None, layer.momentum, seen)
    y = run(BatchNormSpec(activation, running, True, layer.eps), input, layer.weight, layer.bias, residual)
    return y, seen[0] if seen else Moments.of(input, _shapes.batch_dims(input.dim()))


def arguments(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """(input (N, C, *), mask) of one call; only normkit's layers take a mask, only instance norms no batch axis."""
    input = args[0] if args else kwargs.get("input", kwargs.get("x"))
    if not isinstance(input, Tensor):
        raise TypeError(f"expected a Tensor as the input of {type(layer).__name__}, got {type(input).__name__}")
    mask = None
    if isinstance(layer, TrackedNorm):
        mask = args[2] if len(args) > 2 else kwargs.get("mask")
    if isinstance(layer, _InstanceNorm) and input.dim() == getattr(layer, "_get_no_batch_dim", lambda: 0)():
        return input.unsqueeze(0), None if mask is None else mask.unsqueeze(0)
    return input, mask


def _marked(forward: Forward) -> Forward:
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    setattr(stand_in, _MARK, True)
    return stand_in


def _like(new: Tensor | None, own: Tensor | None, layer: nn.Module) -> Tensor | None:
    """normkit's kernels take statistics in float64; other forwards get the dtype that they know."""
    if new is None or own is None:
        return None
    return new if isinstance(layer, TrackedNorm) and new.dtype == torch.float64 else new.to(own)
