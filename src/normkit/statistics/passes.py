"""Passes over the data: measure layers, one pass for all or one pass a layer, and merge what all ranks saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import distributed as ranks
from . import batches as feeding
from .observe import replaced
from .tally import Tally
from .targets import Target, statistics
from .watch import settle, watch

Tallies = dict[nn.Module, Tally]


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


def one_pass(job: Job, targets: list[Target]) -> tuple[Tallies, int]:
    """The tallies of all targets from one pass, and the number of batches."""
    return _pass(job, targets, {}, "recalibrate")


def layer_by_layer(job: Job, targets: list[Target]) -> tuple[Tallies, int]:
    """Pass k settles the k-th layer in the order of first calls; the settled ones use their final statistics."""
    settled: Tallies = {}
    open_targets, seen = list(targets), 0
    while open_targets:
        title = f"recalibrate layer {len(settled) + 1} of {len(targets)}"
        tallies, seen = _pass(job, open_targets, settled, title)
        reached = [target for target in open_targets if tallies[target.layer].read() is not None]
        if not reached:
            settled.update(tallies)  # what the report says about the layers that no batch reached
            break
        first = min(reached, key=lambda target: tallies[target.layer].first)
        settled[first.layer] = tallies[first.layer]
        open_targets.remove(first)
    return settled, seen


def _pass(job: Job, targets: list[Target], settled: Tallies, title: str) -> tuple[Tallies, int]:
    """Measure `targets` in one pass with the `settled` layers under their statistics; merged over the ranks."""
    tallies = {target.layer: _empty(target, job.average) for target in targets}
    order: list[nn.Module] = []
    watches = {t.layer: watch(t, tallies[t.layer], order) for t in targets}
    fixed = {layer: settle(layer, tally) for layer, tally in settled.items()}
    failure: BaseException | None = None
    seen = 0
    with replaced({**watches, **fixed}):
        try:
            seen = feeding.feed(job.model, job.batches, job.steps, job.forward, title if job.progress else None)
        except BaseException as error:
            if not job.merged:
                raise
            failure = error
    for place, layer in enumerate(order):
        tallies[layer].first = place
    if job.merged:
        tallies, seen = _merge(job, tallies, seen, failure)
    if seen == 0:
        raise ValueError("expected at least one batch, got none: is the loader empty, or the generator used up?")
    return tallies, seen


def _merge(job: Job, tallies: Tallies, seen: int, failure: BaseException | None) -> tuple[Tallies, int]:
    """One collective: the tallies of all ranks. A rank that failed takes part, so that the others need not wait."""
    head = torch.tensor([float(seen), float(failure is not None)], dtype=torch.float64)
    packed = [head, *(tally.to_tensor() for tally in tallies.values())]
    by_rank = ranks.gather(packed, job.group)
    if failure is not None:
        raise failure
    failed = [rank for rank, parts in enumerate(by_rank) if parts[0][1]]
    if failed:
        raise RuntimeError(f"recalibrate failed on rank {failed[0]}: see the error there; this model was not changed")
    merged = {}
    for i, (layer, own) in enumerate(tallies.items(), start=1):
        total = Tally.from_tensor(by_rank[0][i], own.average)
        for parts in by_rank[1:]:
            total = total.merge(Tally.from_tensor(parts[i], own.average))
        merged[layer] = total
    return merged, sum(int(parts[0][0]) for parts in by_rank)


def _empty(target: Target, average: bool) -> Tally:
    """A tally of a layer's size; instance norms keep averages, whatever the estimator."""
    mean, _ = statistics(target.layer)
    return Tally.empty(mean.numel(), mean.device, average or target.per_instance)
