"""The exact statistics of a model's layers. There are two, and this is where they are named.

parallel   of all of a layer's inputs while every layer before it normalizes by its batch's own statistics, as in
           training: what running averages are estimates of and `nk.recalibrate` writes. Running statistics are judged
           by their distance from these, in one pass, and from those of evaluation as it is: batches of a few values
           make parallel ones that no evaluation shows, and a fault makes evaluation wrong for the layers after it.
refined    while every layer before it normalizes by its refined ones, as in evaluation; `sequential=True` writes these.
           The gap is shared out between running and refined statistics, so that a layer which is right gets nothing.

Parallel ones are near refined ones; each further pass makes the next layers refined, and in a sound network the second
moves little. In a network that makes small differences large, a pass under statistics that are not settled yet goes
astray; what it found is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..statistics.accumulator import Accumulator
from ..statistics.distance import distance
from ..statistics.layers import Layer, running_statistics
from ..statistics.sample import sample
from ..statistics.stand_in import Forward, arguments, under

SETTLED = 0.01  # standard deviations: a tenth of the least distance that anything is made of (SCREEN)
REFINEMENTS = 3  # passes at most after the first; each settles two more layers or so, and shrinks the rest
ASTRAY = 1.0  # standard deviations: a first refinement that moves more is none

StandIns = dict[nn.Module, Forward]
Run = Callable[[Callable[[], StandIns]], object]  # one pass over all batches with these stand-ins, made inside of it


class Exact(NamedTuple):
    """Statistics as recalibrate would write them: (C,) each, in the buffers' dtype; the variance is unbiased."""

    mean: Tensor
    var: Tensor


def parallel(layers: Iterable[Layer], first: Mapping[nn.Module, Accumulator]) -> dict[nn.Module, Exact]:
    """What a first pass has accumulated; without the layers that showed fewer than two finite values, or whose forward
    refuses to be measured."""
    found = {}
    for layer in layers:
        taken = first[layer.module].read()
        if taken is None or first[layer.module].refusal is not None:
            continue
        new = Exact(*(value.to(buffer) for value, buffer in zip(taken, running_statistics(layer.module), strict=True)))
        if bool(new.mean.isfinite().all()) and bool(new.var.isfinite().all()):
            found[layer.module] = new
    return found


def refined(layers: Iterable[Layer], first: Mapping[nn.Module, Accumulator], run: Run) -> dict[nn.Module, Exact]:
    """From the parallel ones by at most REFINEMENTS passes more."""
    wanted, before = list(layers), ASTRAY
    found = parallel(wanted, first)
    for _ in range(REFINEMENTS if found else 0):
        measured = [layer for layer in wanted if layer.module in found]
        again, old = {layer.module: empty(layer) for layer in measured}, found
        run(partial(_measuring, measured, again, old))
        new = parallel(measured, again)
        moved = max((apart(module, *old[module], new[module]) for module in new), default=0.0)
        if moved > before:
            break
        found, before = new, moved
        if moved < SETTLED:
            break
    return found


def empty(layer: Layer) -> Accumulator:
    """Nothing seen yet of a layer."""
    mean, _ = running_statistics(layer.module)
    return Accumulator.empty(mean.numel(), mean.device, layer.per_instance)


def apart(layer: nn.Module, mean: Tensor, var: Tensor, exact: Exact) -> float:
    """How far the exact statistics are from these, root mean square over the channels; inf where that is not finite.

    In standard deviations of these, sqrt(var + eps): so much is a value off that they normalize.
    """
    found = distance(*exact, mean, var, eps_of(layer)).square().mean().sqrt()
    return float(found.nan_to_num(nan=float("inf")))


def _measuring(
    layers: list[Layer], into: Mapping[nn.Module, Accumulator], given: Mapping[nn.Module, Exact]
) -> StandIns:
    return {x.module: seeing(x, into[x.module], under(x.module, *given[x.module])) for x in layers}


def seeing(layer: Layer, accumulator: Accumulator, forward: Forward) -> Forward:
    """`forward`, whose inputs are taken in."""

    def seen(*args: Any, **kwargs: Any) -> Any:
        x, mask = arguments(layer.module, args, kwargs)
        accumulator.add(sample(x, mask, layer.per_instance))
        return forward(*args, **kwargs)

    return seen


def eps_of(layer: nn.Module) -> float:
    """What the layer adds to a variance; 0 where it does not say."""
    return float(getattr(layer, "eps", 0.0) or 0.0)
