"""Stand in for a layer's forward: see its input, and let it normalize by statistics other than its own.

`put_in` puts stand-ins where layers' `forward` is; nothing else of a layer is touched, no hook, no counter, no buffer,
and who puts them in gives `FORWARD` back (see `model.restore.Kept`). `Lent` lends a layer statistics for one call by
exchanging the entries of its buffers, so any forward that reads `self.running_mean` and `self.running_var` in
evaluation works, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ..model.interrupts import Guard
from ..nn._base import TrackedNorm
from .accumulator import Accumulator
from .layers import Layer, running_statistics
from .own_statistics import by_own_statistics, is_known
from .sample import Sample, sample

Forward = Callable[..., Any]
FORWARD = ("forward",)
_MARK = "_normkit_stands_in"


def put_in(forwards: Mapping[nn.Module, Forward]) -> None:
    """Make each layer's forward the given one.

    Raises RuntimeError where a layer already has a stand-in: two would measure each other.
    """
    if any(hasattr(module.__dict__.get("forward"), _MARK) for module in forwards):
        raise RuntimeError(
            "normkit.adapt or normkit.recalibrate is already at work on this model: leave that block first"
        )
    for module, forward in forwards.items():
        setattr(forward, _MARK, True)
        module.__dict__["forward"] = forward


class Lent(Guard):
    """Inside, the layer is in eval mode and its statistics are these, in the buffers' dtype. Entered twice.

    None, None: it has no statistics, so it normalizes by its input's own and moves nothing.
    """

    holds_signals = False  # once a call, and what comes back are four assignments

    def __init__(self, module: nn.Module, mean: Tensor | None, var: Tensor | None) -> None:
        self.module, self.mean, self.var = module, mean, var
        self.own = module._buffers["running_mean"], module._buffers["running_var"]
        self.training, self.tracks = module.training, getattr(module, "track_running_stats", None)

    def begin(self) -> None:
        buffers = self.module._buffers
        buffers["running_mean"] = self._like(self.mean, self.own[0])
        buffers["running_var"] = self._like(self.var, self.own[1])
        self._switch(False, False if self.mean is None else self.tracks)

    def give_back(self) -> None:
        buffers = self.module._buffers
        buffers["running_mean"], buffers["running_var"] = self.own
        self._switch(self.training, self.tracks)

    def _switch(self, training: bool, tracks: Any) -> None:
        if self.module.training != training:
            self.module.training = training
        if self.tracks is not None and self.module.track_running_stats != tracks:
            self.module.track_running_stats = tracks

    def _like(self, new: Tensor | None, own: Tensor | None) -> Tensor | None:
        """normkit's kernels take statistics in float64; other forwards get the dtype that they know."""
        if new is None or own is None:
            return None
        return new if isinstance(self.module, TrackedNorm) and new.dtype == torch.float64 else new.to(own)


def sampling(layer: Layer, accumulator: Accumulator, order: list[nn.Module]) -> Forward:
    """A stand-in for the layer's forward: under its input's own statistics, which it takes in."""
    module, own = layer.module, layer.module.forward
    known = is_known(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if accumulator.calls == 0:
            order.append(module)
        x, mask = arguments(module, args, kwargs)
        if layer.per_instance:
            accumulator.add(sample(x, mask, True))
            with Lent(module, None, None) as lent, lent:
                return own(*args, **kwargs)
        if known and mask is None and _enough(x):
            y, found = by_own_statistics(module, *args, **kwargs)
            accumulator.add(found)
            return y
        found = sample(x, mask, False)
        accumulator.add(found)
        with Lent(module, *_usable(found, accumulator, module)) as lent, lent:
            return own(*args, **kwargs)

    return forward


def _enough(x: Tensor) -> bool:
    return x.dim() >= 2 and x.numel() > x.shape[1]


def _usable(found: Sample, accumulator: Accumulator, module: nn.Module) -> tuple[Tensor, Tensor]:
    """(mean, biased variance) of this call; of all calls so far where this one tells no variance."""
    if int(found.values) >= 2:
        return found.table[0], found.table[1]
    if accumulator.values >= 2:
        return accumulator.moments.mean, accumulator.moments.var(correction=0)
    return running_statistics(module)


def settled(module: nn.Module, accumulator: Accumulator) -> Forward:
    """A stand-in for the layer's forward: evaluation under what was accumulated, rounded as it will be written."""
    own, found = module.forward, accumulator.read()
    assert found is not None
    mean, var = (new.to(old) for new, old in zip(found, running_statistics(module), strict=True))

    def forward(*args: Any, **kwargs: Any) -> Any:
        with Lent(module, mean, var) as lent, lent:
            return own(*args, **kwargs)

    return forward


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
