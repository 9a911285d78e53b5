"""Who feeds whom on one batch, whatever form the batch has."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..model.dataflow import Flow, cloned, observe
from ..statistics.batches import Feed, call


def flow_of(model: nn.Module, batch: Any, forward: Feed | None) -> Flow | None:
    """The dataflow; None where the run cannot be recorded."""
    try:
        example = _example(model, batch, forward)
        return None if example is None else observe(model, example)
    except Exception:  # what the recorder cannot follow the passes may: they report the model's own errors
        return None


def _example(model: nn.Module, batch: Any, forward: Feed | None) -> Any:
    """The arguments with which the model itself is called, as `observe` takes them."""
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    batch = cloned(batch)
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(cloned((args, kwargs))), with_kwargs=True
    )
    try:
        (forward or call)(model, batch)
    finally:
        handle.remove()
    if not given or (given[0][0] and given[0][1]):
        return None
    return given[0][0] or given[0][1]
