"""The exact statistics of a model's layers: one meaning, for the distances that rules judge by and for the gap.

They are those of all of a layer's inputs while every layer before it normalizes by its exact ones: what evaluation
should have. The first pass, under each batch's own statistics as in training, is near; each further one makes the next
layers exact, and in a sound network the second moves little.
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

StandIns = dict[nn.Module, Forward]
Run = Callable[[Callable[[], StandIns]], object]  # one pass over all batches with these stand-ins, made inside of it


class Exact(NamedTuple):
    """Statistics as recalibrate would write them: (C,) each, in the buffers' dtype; the variance is unbiased."""

    mean: Tensor
    var: Tensor


def refined(layers: Iterable[Layer], first: Mapping[nn.Module, Accumulator], run: Run) -> dict[nn.Module, Exact]:
    """The exact statistics, from those of a first pass and at most REFINEMENTS more; without the layers that showed
    fewer than two finite values, or whose forward refuses to be measured."""
    wanted = list(layers)
    found = _read(wanted, first)
    for _ in range(REFINEMENTS if found else 0):
        measured = [layer for layer in wanted if layer.module in found]
        again, old = {layer.module: empty(layer) for layer in measured}, found
        run(partial(_measuring, measured, again, old))
        found = _read(measured, again)
        if max((apart(module, *old[module], new) for module, new in found.items()), default=0.0) < SETTLED:
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
    found = distance(*exact, mean, var, _eps(layer)).square().mean().sqrt()
    return float(found.nan_to_num(nan=float("inf")))


def _measuring(
    layers: list[Layer], into: Mapping[nn.Module, Accumulator], given: Mapping[nn.Module, Exact]
) -> StandIns:
    return {x.module: _seen(x, into[x.module], under(x.module, *given[x.module])) for x in layers}


def _read(layers: Iterable[Layer], accumulators: Mapping[nn.Module, Accumulator]) -> dict[nn.Module, Exact]:
    found = {}
    for layer in layers:
        taken = accumulators[layer.module].read()
        if taken is None or accumulators[layer.module].refusal is not None:
            continue
        new = Exact(*(value.to(buffer) for value, buffer in zip(taken, running_statistics(layer.module), strict=True)))
        if bool(new.mean.isfinite().all()) and bool(new.var.isfinite().all()):
            found[layer.module] = new
    return found


def _seen(layer: Layer, accumulator: Accumulator, forward: Forward) -> Forward:
    """`forward`, whose inputs are taken in."""

    def seen(*args: Any, **kwargs: Any) -> Any:
        x, mask = arguments(layer.module, args, kwargs)
        accumulator.add(sample(x, mask, layer.per_instance))
        return forward(*args, **kwargs)

    return seen


def _eps(layer: nn.Module) -> float:
    return float(getattr(layer, "eps", 0.0) or 0.0)
