"""`deferred_statistics`: the micro-batches of one step count as the one batch that they are.

Rules: inside the block nothing moves; on leaving, each layer's moments merge and its running statistics move once; an
exception drops them. Each micro-batch is still normalized by its own statistics: the step's are not known before.
"""

from __future__ import annotations

from contextlib import ContextDecorator
from typing import Any

from torch import nn

from .._torch import NormBase
from ..functional import running as _running
from ..functional.running import Running, Update
from ..model.interrupts import UserBlock
from ..model.kept import Kept
from ..model.transaction import Transaction
from ..nn.base import TrackedNorm


def deferred_statistics(model: nn.Module) -> Deferral:
    """Hold the running statistics of a model's norms back; they move once on leaving, by all batches seen merged.

    For gradient accumulation: k micro-batches of one optimizer step leave the running mean, the running variance and
    the count of batches as the undivided batch would have (the variance counts what lies between micro-batches too).

    Args:
        model: a model with normkit layers that track statistics; each forward in training mode inside the block is a
            micro-batch. Layers in evaluation mode, frozen ones and those that see no batch stay as they are. A
            micro-batch with NaN or Inf is left out, with a RuntimeWarning.

    The statistics do not move if the block is left by an exception. In a block within a block, the outer one moves.

    Raises:
        ValueError: the model has no normkit layer that tracks statistics, or one of torch's that this cannot hold back.

    Example:
        >>> with normkit.deferred_statistics(model):
        ...     for x, y in micro_batches:
        ...         loss_fn(model(x), y).backward()
        >>> optimizer.step()
    """
    return Deferral(model)


class Deferral(UserBlock, ContextDecorator):
    """The block of :func:`deferred_statistics`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._layers: list[TrackedNorm] = []
        self._kept = Kept()

    def begin(self) -> None:
        """Give each layer a list to put its batches on."""
        self._layers = [layer for layer in _tracked(self.model) if layer._deferred is None]
        self._kept = Kept(*self._layers, only=("_deferred",))
        self.push(self._move)  # runs first on leaving
        for layer in self._layers:
            layer._deferred = []

    def leave(self) -> None:
        """Take the lists away."""
        self._kept.give_back()

    def _move(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Move the statistics of all layers, or of none."""
        if kind is not None:
            return
        moves = [move for layer in self._layers if (move := _merged(layer)) is not None]
        with Transaction() as change, change:
            for running, _ in moves:
                change.keep_values(running.mean, running.var, running.batches)
            change.commit(lambda: _write(moves))


def _tracked(model: nn.Module) -> list[TrackedNorm]:
    found = [m for m in model.modules() if isinstance(m, TrackedNorm) and "num_batches_tracked" in m._buffers]
    foreign = [
        name
        for name, m in model.named_modules()
        if isinstance(m, NormBase) and not isinstance(m, TrackedNorm) and m.track_running_stats
    ]
    if foreign:
        raise ValueError(
            f"the statistics of torch's own layers cannot be held back: {', '.join(foreign)}; replace them first with "
            "normkit.convert(model, 'batch') or normkit.accelerate"
        )
    if not any(m._statistics() for m in found):
        raise ValueError(
            "the model holds no normkit layer that tracks running statistics, so there is nothing to defer"
        )
    return found


def _write(moves: list[tuple[Running, Update]]) -> None:
    for running, held in moves:
        _running.apply_update(running, held)


def _merged(layer: TrackedNorm) -> tuple[Running, Update] | None:
    """What moves, and by what; None where nothing does."""
    mean, var, batches = layer.running_mean, layer.running_var, layer._deferred
    if mean is None or var is None or not batches:
        return None
    finite = [batch for batch in batches if _running.is_finite(batch, var.dtype)]
    if len(finite) < len(batches):
        _running.warn_not_finite()
    if not finite:
        return None
    # one layer's batches are all of one kind
    merged: Any = finite[0]
    for batch in finite[1:]:
        merged = merged.merge(batch)
    return Running(mean, var, layer.num_batches_tracked, layer.momentum), merged
