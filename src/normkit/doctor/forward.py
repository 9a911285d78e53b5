"""What real batches show: the statistics each norm should have, those it has, and what the difference does.

    pass 1        every norm under its batch's own statistics: the parallel exact ones (exact.py), and traffic
    pass 2, 3     the answers under exact and under running statistics, and what evaluation shows under these
    more          two for each suspicious layer: all exact but this one, which has its running ones, or its batch's

Rules: the model runs in evaluation mode (dropout off) and is given back as it was. Distances are in units of
sqrt(running_var + eps): what a normalized value feels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..model.dataflow import Flow
from ..model.restore import Restored
from ..statistics.batches import Feed
from ..statistics.distance import distance
from ..statistics.layers import Layer, find, running_statistics
from . import answers
from .blame import Felt, Trial, exceeds, exceeds_together, most
from .exact import empty, eps_of, parallel, seeing
from .flow import flow_of
from .state import State
from .watch import Traffic, TrafficWatch, Watched, watching

UNIT = "sqrt(var + eps)"
SCREEN = 0.1  # a tenth of a standard deviation, over the channels: below it nothing is worth a word
WORST = 0.5  # of a single channel; one whose running variance is far too large comes near 1 and never beyond
SURE = 2.5  # standard errors: of 100 healthy layers one is beyond


@dataclass(frozen=True, eq=False)
class NormRun:
    """What the batches showed of one norm; the fields from `mean` on only of layers whose statistics may move.

    mean, var: the exact ones, unbiased, (C,). distance: of the running ones from them, (C,). error: its standard error.
    evaluated: as distance, from what evaluation shows as it is.
    batch: of single batches' statistics, root mean square. between: of the calls of a shared norm. change: of the
    answer when this layer alone uses its running statistics, in the answer's standard deviations; by_batch: when it
    uses those of single batches. harmful: the first is more than the second.
    """

    name: str
    traffic: Traffic
    mean: Tensor | None = None
    var: Tensor | None = None
    distance: Tensor | None = None
    error: Tensor | None = None
    evaluated: Tensor | None = None
    batch: float = 0.0
    between: float = 0.0
    change: float | None = None
    by_batch: float | None = None
    harmful: bool = False
    refusal: str | None = None

    @property
    def apart(self) -> float:
        """Root mean square distance over the channels, without what the sampling of images adds."""
        if self.distance is None or self.error is None:
            return 0.0
        noise = self.error.square().mean() if bool(self.error.isfinite().all()) else torch.zeros(())
        return float((self.distance.square().mean() - noise).clamp(min=0).sqrt())

    @property
    def margin(self) -> float:
        """How far `apart` may be off."""
        return float("inf") if self.error is None else SURE * float(self.error.square().mean().sqrt())

    @property
    def worst(self) -> int:
        """The channel that is farthest off."""
        assert self.distance is not None
        return int(self.distance.nan_to_num(nan=float("inf")).argmax())

    @property
    def sortable(self) -> float:
        """`apart`, infinite where it is no number."""
        return _sortable(self.apart)

    @property
    def far(self) -> bool:
        """Whether the running statistics are surely beyond the screening distance from the exact ones, and from what
        evaluation shows."""
        if self.distance is None or self.error is None:
            return False
        both = self.distance if self.evaluated is None else torch.fmin(self.distance, self.evaluated)
        if not bool(both.isfinite().all()):
            return True
        single = bool((both - 2 * SURE * self.error > WORST).any())
        return float(both.square().mean().sqrt()) - self.margin > SCREEN or single


@dataclass(frozen=True, eq=False)
class Forward:
    """What the batches showed of the model.

    change: of the answer under running statistics from that under exact ones; noise: what single batches' statistics
    do to it; both in standard deviations of the answer, at the output that feels it most, None where answers cannot be
    compared. harmful: some layer's running statistics change it by more than batches differ, and it is felt;
    together: no layer is surely off, and all of them do; eps_harmful: so does the eps that the reference has.
    """

    batches: int
    images: int
    norms: dict[str, NormRun]
    change: float | None
    noise: float | None
    harmful: bool
    together: bool
    eps_harmful: bool
    flow: Flow | None

    def needed(self) -> int | None:
        """How many images would tell a distance of SCREEN at every layer; None where these do or nothing is known."""
        margins = [run.margin for run in self.norms.values() if run.distance is not None and not run.far]
        if not margins or self.images < 2:
            return None
        worst = max(margins)
        return None if worst <= SCREEN or worst == float("inf") else int(self.images * (worst / SCREEN) ** 2) + 1


def look(model: nn.Module, state: State, batches: Sequence[Any], forward: Feed | None) -> Forward:
    """Run the passes. Raises what the model raises; it is given back in any case."""
    own = {norm.name for norm in state.norms if norm.graph is None}
    layers = [layer for layer in find(model) if layer.left_alone is None and layer.name in own]
    awake = [layer for layer in layers if layer.module.training and not model.training]
    with Restored(model, evaluating=True) as restored, restored:
        flow = flow_of(model, batches[0], forward)
        modules = dict(model.named_modules())
        seen = {layer.module: Watched.of(layer) for layer in layers}
        norm_modules = {name: modules[name] for name in own}
        traffic, in_batches = _first_pass(model, batches, forward, layers, seen, norm_modules)
        exact = parallel(layers, seen)
        right = answers.answer(model, batches, forward, answers.lending(exact))
        evaluated = {layer.module: empty(layer) for layer in layers}
        as_it_is = answers.answer(
            model, batches, forward, {x.module: seeing(x, evaluated[x.module], x.module.forward) for x in layers}
        )
        shown = parallel(layers, evaluated)
        images = min((count for watched in seen.values() if (count := _images(watched))), default=0)
        trial = Trial(model, batches, forward, exact, right, seen, images)
        other, each = in_batches, images / len(batches)  # of how many images the noise is
        if len(batches) == 1:  # its own statistics are the exact ones
            other = answers.answer(model, batches, forward, answers.lending(trial.perturbed()))
        norms = {name: NormRun(name, found) for name, found in traffic.items()}
        for layer in layers:
            norms[layer.name] = _run_of(layer, seen[layer.module], exact, shown, norms[layer.name])
        change, noise = answers.apart(as_it_is, right), answers.apart(other, right)
        if images < 2:
            noise = None  # one image does not tell how others differ
        far = sorted((x for x in layers if norms[x.name].far), key=lambda x: -norms[x.name].sortable)
        awake = [layer for layer in awake if layer.module in exact and layer not in far]
        alone = trial.alone(far + awake) if images > 1 else {}
        guilty = _guilty({x.name: alone[x.name] for x in far if x.name in alone}, exceeds(change, noise, each))
        for name, felt in alone.items():
            norms[name] = replace(norms[name], change=felt.change, by_batch=felt.by_batch, harmful=name in guilty)
        eps_harmful = exceeds(trial.other_eps(state), noise, each)
        together = not far and images > 1 and exceeds_together(change, noise, each, images)
        harmful = bool(guilty) or together
    return Forward(len(batches), images, norms, most(change), most(noise), harmful, together, eps_harmful, flow)


def _guilty(alone: dict[str, Felt], together: bool) -> set[str]:
    """The layers that change the answer by too much; where each is bearable and all together are not, the worst."""
    guilty = {name for name, felt in alone.items() if felt.exceeds}
    if alone and not guilty and together:
        largest = max(_sortable(felt.change) for felt in alone.values())
        guilty = {name for name, felt in alone.items() if _sortable(felt.change) >= largest / 2}
    return guilty


def _first_pass(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Feed | None,
    layers: list[Layer],
    seen: dict[nn.Module, Watched],
    norms: dict[str, nn.Module],
) -> tuple[dict[str, Traffic], answers.Answer]:
    """What went through, and the answers under batch statistics; the hooks are taken off again."""
    hooks = TrafficWatch(norms)

    def after_batch() -> None:
        hooks.next_batch()
        for watched in seen.values():
            watched.calls_in_batch = 0

    stand_ins = {layer.module: watching(layer, seen[layer.module]) for layer in layers}
    found = answers.answer(model, batches, forward, stand_ins, after_batch)
    hooks.take_off()
    return hooks.traffic, found


def _run_of(
    layer: Layer, watched: Watched, exact: answers.Statistics, shown: answers.Statistics, run: NormRun
) -> NormRun:
    if layer.module not in exact:
        return replace(run, refusal=watched.refusal or "not reached by any batch")
    mean, var = (part.cpu().double() for part in exact[layer.module])
    own_mean, own_var = (part.detach().cpu().double() for part in running_statistics(layer.module))
    eps = eps_of(layer.module)
    unit = (own_var + eps).sqrt()
    mean_error, var_error = (part.cpu().double() for part in watched.errors())
    std = (var + eps).sqrt()
    error = (mean_error.square() + (var_error / (2 * std)).square()).sqrt() / unit
    apart = distance(mean, var, own_mean, own_var, eps)
    evaluated = None
    if layer.module in shown:
        shown_mean, shown_var = (part.cpu().double() for part in shown[layer.module])
        evaluated = distance(shown_mean, shown_var, own_mean, own_var, eps)
    return replace(
        run,
        mean=mean,
        var=var,
        distance=apart.cpu(),
        error=torch.where(unit.isfinite(), error, 0.0),
        evaluated=evaluated,
        batch=_batch_distance(watched, mean, var, eps),
        between=_between_calls(watched, eps),
    )


def _images(watched: Watched) -> int:
    return watched.images // (max(watched.places, default=0) + 1)


def _batch_distance(watched: Watched, mean: Tensor, var: Tensor, eps: float) -> float:
    """Root mean square over calls and channels of the distance of one call's statistics from the exact ones."""
    if watched.average or not watched.samples:
        return 0.0
    each = [distance(s.table[0].cpu(), s.table[1].cpu(), mean, var, eps) for s in watched.samples]
    return float(torch.stack(each).square().mean().sqrt())


def _between_calls(watched: Watched, eps: float) -> float:
    """How far the inputs of a shared norm's calls are from each other: the largest distance of one from the others."""
    if watched.average or max(watched.places, default=0) == 0:
        return 0.0
    by_place: dict[int, list[Tensor]] = {}
    for place, found in zip(watched.places, watched.samples, strict=True):
        by_place.setdefault(place, []).append(found.table[:2].cpu())
    means = [torch.stack(tables).mean(0) for tables in by_place.values()]
    pairs = [distance(a[0], a[1], b[0], b[1], eps) for a in means for b in means if a is not b]
    return max(float(pair.square().mean().sqrt()) for pair in pairs)


def _sortable(value: float | None) -> float:
    return float("inf") if value is None or value != value else value
