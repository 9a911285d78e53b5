"""`deferred_statistics`: the micro-batches of one step count as the one batch that they are.

Rules: inside the block nothing moves; on leaving, each layer's moments merge and its running statistics move once; an
exception drops them. Each micro-batch is still normalized by its own statistics: the step's are not known before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..functional import running as _running
from ..functional.running import Running, Update
from ..nn._base import TrackedNorm


@contextmanager
def deferred_statistics(model: nn.Module) -> Iterator[None]:
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
    layers = [layer for layer in _tracked(model) if layer._deferred is None]
    for layer in layers:
        layer._deferred = []
    held: list[tuple[TrackedNorm, list[Update]]] = []
    try:
        yield
        held = [(layer, layer._deferred or []) for layer in layers]
    finally:
        for layer in layers:
            layer._deferred = None
    for layer, batches in held:
        _move(layer, batches)


def _tracked(model: nn.Module) -> list[TrackedNorm]:
    found = [m for m in model.modules() if isinstance(m, TrackedNorm) and "num_batches_tracked" in m._buffers]
    foreign = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._NormBase) and not isinstance(m, TrackedNorm) and m.track_running_stats
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


def _move(layer: TrackedNorm, batches: list[Update]) -> None:
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None or not batches:
        return
    finite = [batch for batch in batches if _running.is_finite(batch, var.dtype)]
    if len(finite) < len(batches):
        _running.warn_not_finite()
    if not finite:
        return
    # one layer's batches are all of one kind
    merged: Any = finite[0]
    for batch in finite[1:]:
        merged = merged.merge(batch)
    running = Running(mean, var, layer.num_batches_tracked, layer.momentum)
    _running.apply_update(running, merged)
