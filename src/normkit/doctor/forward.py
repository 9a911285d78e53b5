"""What real batches show: the statistics each norm should have, those it has, and what the difference does.

    pass 1        every norm under its batch's own statistics: exact statistics are accumulated, traffic is noted
    pass 2, 3     the answers under exact and under running statistics
    more          two for each suspicious layer: all exact but this one, which has its running ones, or its batch's

Rules: the model runs in evaluation mode (dropout off) and is given back as it was. Distances are in units of
sqrt(running_var + eps): what a normalized value feels. A layer is judged in a network whose other layers are right, so
an earlier fault is not blamed on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..model.dataflow import Flow, cloned, observe
from ..model.restore import Restored
from ..statistics.batches import Feed, call
from ..statistics.distance import distance
from ..statistics.layers import Layer, find, running_statistics
from ..statistics.lent import Lent
from . import answers
from .state import State
from .watch import Traffic, TrafficWatch, Watched, watching

UNIT = "sqrt(var + eps)"
SCREEN = 0.1  # a tenth of a standard deviation, over the channels: below it nothing is worth a word
WORST = 1.0  # of a single channel
SURE = 2.5  # standard errors: of 100 healthy layers one is beyond
PLAYERS = 16  # layers that get passes of their own
JUDGES = 4  # batches in each of these passes
FELT = 0.05  # of the answer's standard deviation: a smaller change is none


@dataclass(frozen=True, eq=False)
class NormRun:
    """What the batches showed of one norm; the fields from `mean` on only of layers whose statistics may move.

    mean, var: the exact ones, unbiased, (C,). distance: of the running ones from them, (C,). error: its standard error.
    batch: of single batches' statistics, root mean square. between: of the calls of a shared norm. change: of the
    answer when this layer alone uses its running statistics, in the answer's standard deviations. harmful: that is more
    than its own statistics of single batches do.
    """

    name: str
    traffic: Traffic
    mean: Tensor | None = None
    var: Tensor | None = None
    distance: Tensor | None = None
    error: Tensor | None = None
    batch: float = 0.0
    between: float = 0.0
    change: float | None = None
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
        """Whether the running statistics are surely beyond the screening distance."""
        if self.distance is None or self.error is None:
            return False
        if not bool(self.distance.isfinite().all()):
            return True
        root = float(self.distance.square().mean().sqrt())
        single = bool((self.distance - 2 * SURE * self.error > WORST).any())
        return root - self.margin > SCREEN or single


@dataclass(frozen=True, eq=False)
class Forward:
    """What the batches showed of the model.

    change: of the answer under running statistics from that under exact ones; noise: what single batches' statistics
    do to it; both in standard deviations of the answer, at the output that feels it most, None where answers cannot be
    compared. harmful: some layer's running statistics change it by more than batches differ, and it is felt.
    """

    batches: int
    images: int
    norms: dict[str, NormRun]
    change: float | None
    noise: float | None
    harmful: bool
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
    layers = [layer for layer in find(model) if layer.left_alone is None]
    with Restored(model, evaluating=True) as restored, restored:
        flow = _flow(model, batches[0], forward)
        modules = dict(model.named_modules())
        seen = {layer.module: Watched.of(layer) for layer in layers}
        norm_modules = {norm.name: modules[norm.name] for norm in state.norms}
        traffic, in_batches = _first_pass(model, batches, forward, layers, seen, norm_modules)
        exact = {module: found for module, w in seen.items() if w.refusal is None and (found := w.read()) is not None}
        right = answers.answer(model, batches, forward, answers.lending(exact))
        as_it_is = answers.answer(model, batches, forward, {})
        images = min((count for watched in seen.values() if (count := _images(watched))), default=0)
        other = in_batches
        if len(batches) == 1:  # its own statistics are the exact ones
            other = answers.answer(model, batches, forward, answers.lending(_perturbed(seen, exact)))
        norms = {name: NormRun(name, found) for name, found in traffic.items()}
        for layer in layers:
            norms[layer.name] = _run_of(layer, seen[layer.module], exact, norms[layer.name])
        change, noise = answers.apart(as_it_is, right), answers.apart(other, right)
        if images < 2:
            noise = None  # one image does not tell how others differ
        suspicious = [layer for layer in layers if norms[layer.name].far]
        suspicious.sort(key=lambda layer: -norms[layer.name].sortable)
        alone = {} if images < 2 else _blamed(model, batches, forward, suspicious, exact, seen, right)
        guilty = {name for name, (_, is_guilty) in alone.items() if is_guilty}
        if alone and not guilty and _exceeds(change, noise):  # each alone is bearable, together they are not
            largest = max(_sortable(felt) for felt, _ in alone.values())
            guilty = {name for name, (felt, _) in alone.items() if _sortable(felt) >= largest / 2}
        for name, (felt, _) in alone.items():
            norms[name] = replace(norms[name], change=felt, harmful=name in guilty)
    return Forward(len(batches), images, norms, _most(change), _most(noise), bool(guilty), flow)


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
    return hooks.traffic, found


def _run_of(layer: Layer, watched: Watched, exact: answers.Statistics, run: NormRun) -> NormRun:
    if layer.module not in exact:
        return replace(run, refusal=watched.refusal or "not reached by any batch")
    mean, var = (part.cpu().double() for part in exact[layer.module])
    own_mean, own_var = (part.detach().cpu().double() for part in running_statistics(layer.module))
    eps = _eps(layer.module)
    unit = (own_var + eps).sqrt()
    mean_error, var_error = (part.cpu().double() for part in watched.errors())
    std = (var + eps).sqrt()
    error = (mean_error.square() + (var_error / (2 * std)).square()).sqrt() / unit
    apart = distance(mean, var, own_mean, own_var, eps)
    return replace(
        run,
        mean=mean,
        var=var,
        distance=apart.cpu(),
        error=torch.where(unit.isfinite(), error, 0.0),
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


def _perturbed(seen: dict[nn.Module, Watched], exact: answers.Statistics) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Statistics that are off by their standard errors, with alternating signs: what another batch would have given."""
    found = {}
    for module, (mean, var) in exact.items():
        mean_error, var_error = seen[module].errors()
        sign = torch.ones_like(mean)
        sign[1::2] = -1
        finite = torch.isfinite(mean_error)
        moved_var = torch.where(finite, var + sign.flip(0) * var_error, var)
        found[module] = torch.where(finite, mean + sign * mean_error, mean), moved_var.clamp(min=0)
    return found


def _blamed(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Feed | None,
    suspicious: list[Layer],
    exact: answers.Statistics,
    seen: dict[nn.Module, Watched],
    right: answers.Answer,
) -> dict[str, tuple[float | None, bool]]:
    """Of each suspicious layer what it does alone, and whether that is more than its own statistics of single batches
    do alone."""
    few, found = batches[:JUDGES], {}
    perturbed = answers.lending(_perturbed(seen, exact))
    for layer in suspicious[:PLAYERS]:
        others = answers.lending({module: pair for module, pair in exact.items() if module is not layer.module})
        change = answers.apart(answers.answer(model, few, forward, others), right[:JUDGES])
        watched = seen[layer.module]
        replays = len(batches) > 1 and not layer.per_instance and all(int(s.values) > 1 for s in watched.samples)
        in_batch = _replaying(layer.module, watched) if replays else perturbed[layer.module]
        noise = answers.answer(model, few, forward, {**others, layer.module: in_batch})
        found[layer.name] = _most(change), _exceeds(change, answers.apart(noise, right[:JUDGES]))
    return found


def _replaying(module: nn.Module, watched: Watched) -> Callable[..., Any]:
    """A stand-in that normalizes the k-th call by the statistics that the k-th call of the first pass had."""
    own, tables = module.forward, iter([(s.table[0], s.table[1]) for s in watched.samples])

    def forward(*args: Any, **kwargs: Any) -> Any:
        with Lent(module, *next(tables)) as lent, lent:
            return own(*args, **kwargs)

    return forward


def _exceeds(change: list[float] | None, noise: list[float] | None) -> bool:
    """Whether some output changes by more than twice what batches differ, and so that it is felt."""
    if change is None or noise is None:
        return False
    return any(a > max(2 * b, FELT) for a, b in zip(change, noise, strict=True))


def _most(values: list[float] | None) -> float | None:
    return max(values) if values else None


def _sortable(value: float | None) -> float:
    return float("inf") if value is None or value != value else value


def _eps(module: nn.Module) -> float:
    return float(getattr(module, "eps", 0.0))


def _flow(model: nn.Module, batch: Any, forward: Feed | None) -> Flow | None:
    """Who feeds whom on one batch; None where the run cannot be recorded."""
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
