"""Passes over the data: one for all layers or one a layer, under stand-ins, merged over all ranks.

Rule: who calls them gives the model back, stand-ins included, should a pass fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import distributed as ranks
from ..model.kept import Kept
from . import batches as feeding
from .accumulator import Accumulator
from .layers import Layer, running_statistics
from .stand_in import FORWARD, put_in, sampling, settled

Accumulators = dict[nn.Module, Accumulator]


@dataclass(frozen=True)
class Job:
    """One call of recalibrate."""

    model: nn.Module
    batches: Iterable[Any]
    steps: int | None
    forward: Callable[[nn.Module, Any], object] | None
    progress: bool
    merged: bool
    group: ranks.Group
    average: bool


def one_pass(job: Job, layers: list[Layer]) -> tuple[Accumulators, int]:
    """What one pass accumulates at all layers, and the number of batches."""
    return _pass(job, layers, {}, "recalibrate")


def layer_by_layer(job: Job, layers: list[Layer]) -> tuple[Accumulators, int]:
    """Pass k settles the k-th layer in the order of first calls; the settled ones use their final statistics."""
    done: Accumulators = {}
    waiting, seen = list(layers), 0
    while waiting:
        title = f"recalibrate layer {len(done) + 1} of {len(layers)}"
        found, seen = _pass(job, waiting, done, title)
        reached = [layer for layer in waiting if found[layer.module].read() is not None]
        if not reached:
            done.update(found)  # what the report says about the layers that no batch reached
            break
        first = min(reached, key=lambda layer: found[layer.module].first)
        done[first.module] = found[first.module]
        waiting.remove(first)
    return done, seen


def _pass(job: Job, layers: list[Layer], done: Accumulators, title: str) -> tuple[Accumulators, int]:
    """Accumulate at `layers` in one pass, with those that are done under their statistics; merged over the ranks."""
    found = {layer.module: _empty(layer, job.average) for layer in layers}
    order: list[nn.Module] = []
    samplers = {layer.module: sampling(layer, found[layer.module], order) for layer in layers}
    fixed = {module: settled(module, accumulator) for module, accumulator in done.items()}
    forwards = Kept(*samplers, *fixed, only=FORWARD)
    put_in({**samplers, **fixed})
    failure: BaseException | None = None
    seen = 0
    try:
        seen = feeding.feed(job.model, job.batches, job.steps, job.forward, title if job.progress else None)
    except BaseException as error:
        if not job.merged:
            raise
        failure = error
    forwards.give_back()
    for place, module in enumerate(order):
        found[module].first = place
    if job.merged:
        found, seen = _merge(job, found, seen, failure)
    if seen == 0:
        raise ValueError("expected at least one batch, got none: is the loader empty, or the generator used up?")
    return found, seen


def _merge(job: Job, found: Accumulators, seen: int, failure: BaseException | None) -> tuple[Accumulators, int]:
    """One collective: what all ranks accumulated. A rank that failed takes part, so that the others need not wait."""
    head = torch.tensor([float(seen), float(failure is not None)], dtype=torch.float64)
    packed = [head, *(accumulator.to_tensor() for accumulator in found.values())]
    by_rank = ranks.gather(packed, job.group)
    if failure is not None:
        raise failure
    failed = [rank for rank, parts in enumerate(by_rank) if parts[0][1]]
    if failed:
        raise RuntimeError(f"recalibrate failed on rank {failed[0]}: see the error there; this model was not changed")
    merged = {}
    for i, (module, own) in enumerate(found.items(), start=1):
        total = Accumulator.from_tensor(by_rank[0][i], own.average)
        for parts in by_rank[1:]:
            total = total.merge(Accumulator.from_tensor(parts[i], own.average))
        total.refusal = own.refusal
        merged[module] = total
    return merged, sum(int(parts[0][0]) for parts in by_rank)


def _empty(layer: Layer, average: bool) -> Accumulator:
    """An accumulator of a layer's size; instance norms keep averages, whatever the estimator."""
    mean, _ = running_statistics(layer.module)
    return Accumulator.empty(mean.numel(), mean.device, average or layer.per_instance)
