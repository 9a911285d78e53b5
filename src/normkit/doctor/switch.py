"""Run one model over the same batches with some of its layers under other statistics than their running ones.

The exact statistics of a layer are those of all its inputs while every layer before it normalizes by its exact ones.
The first pass, under batch statistics, is near; each further one makes the next layers exact, and in a sound network
the second moves little. Rules: every pass begins with the same model and the same random numbers and gives both back;
batches are held, so that a loader which shuffles or augments shows each pass the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..model.dataflow import cloned
from ..model.restore import Restored
from ..statistics import batches as feeding
from ..statistics.accumulator import Accumulator
from ..statistics.distance import distance
from ..statistics.layers import Layer, find, running_statistics
from ..statistics.sample import sample
from ..statistics.stand_in import Forward, arguments, put_in, sampling, under

T = TypeVar("T")
Read = Callable[[int, Any, Any], T]  # (number of the batch, output, batch) -> what is kept of the answer

SETTLED = 0.01  # standard deviations: a tenth of the least distance that anything is made of (SCREEN in gap.py)
REFINEMENTS = 3  # passes at most after the first; each settles two more layers or so, and shrinks the rest


class Exact(NamedTuple):
    """Statistics as recalibrate would write them: (C,) each, in the buffers' dtype; the variance is unbiased."""

    mean: Tensor
    var: Tensor


class Switch:
    """`layers`: whose statistics can be switched, in the order in which the data reach them; `exact`: to these.

    Both are empty until `measure`. Frozen layers and those that the model's own modes hold fixed normalize alike in
    training and evaluation, so they keep their statistics in every pass.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        forward: Callable[[nn.Module, Any], Any] | None,
        seed: int,
        advance: Callable[[], object],
    ) -> None:
        self.model, self.batches, self.advance = model, batches, advance
        self._call, self._seed = forward or feeding.call, seed
        self._found = find(model)
        self.layers: list[Layer] = []
        self.exact: dict[nn.Module, Exact] = {}

    def measure(self, read: Read[T]) -> list[T]:
        """Find the exact statistics; returns the answers under batch statistics."""
        free = [layer for layer in self._found if layer.left_alone is None]
        taken = {layer.module: _empty(layer) for layer in free}
        order: list[nn.Module] = []
        answers = self._pass(read, lambda: {x.module: sampling(x, taken[x.module], order) for x in free})
        known = {layer.module: layer for layer in free}
        self.layers = [known[module] for module in order]
        self._take(taken)
        for _ in range(REFINEMENTS if self.layers else 0):
            again = {layer.module: _empty(layer) for layer in self.layers}
            self._pass(lambda *_: None, partial(self._measuring, again))
            if self._take(again) < SETTLED:
                break
        return answers

    def run(self, exact: Collection[nn.Module], read: Read[T], *, training: bool = False) -> list[T]:
        """The answers with these layers under their exact statistics and the others under their running ones.

        training: every module but the layers with running statistics is in training mode, if it is one that trains:
        dropout drops, stochastic depth skips.
        """
        return self._pass(read, lambda: {module: under(module, *self.exact[module]) for module in exact}, training)

    def _measuring(self, into: Mapping[nn.Module, Accumulator]) -> dict[nn.Module, Forward]:
        return {x.module: _seen(x, into[x.module], under(x.module, *self.exact[x.module])) for x in self.layers}

    def _pass(self, read: Read[T], forwards: Callable[[], dict[nn.Module, Forward]], training: bool = False) -> list[T]:
        modes = {module: module.training for module in self.model.modules()}
        with Restored(self.model, evaluating=True) as restored, restored:
            torch.manual_seed(self._seed)
            put_in(forwards())
            if training:
                self._train(modes)
            inner = feeding.unwrapped(self.model)
            answers = [read(i, self._call(inner, cloned(batch)), batch) for i, batch in enumerate(self.batches)]
        self.advance()
        return answers

    def _train(self, modes: Mapping[nn.Module, bool]) -> None:
        norms = {layer.module for layer in self._found}
        for module, mode in modes.items():  # in a model in evaluation every module is one that trains
            module.training = (mode or not modes[self.model]) and module not in norms

    def _take(self, found: Mapping[nn.Module, Accumulator]) -> float:
        """Make what was found the exact statistics; returns how far the layer that moved most did."""
        moved, kept = 0.0, []
        for layer in self.layers:
            taken = found[layer.module].read()
            if taken is None or found[layer.module].refusal is not None:
                continue
            old, running = self.exact.get(layer.module), running_statistics(layer.module)
            new = Exact(*(value.to(buffer) for value, buffer in zip(taken, running, strict=True)))
            if not (new.mean.isfinite().all() and new.var.isfinite().all()):
                continue
            moved = max(moved, apart(layer.module, *old, new) if old else 0.0)
            self.exact[layer.module] = new
            kept.append(layer)
        self.layers = kept
        return moved


def apart(layer: nn.Module, mean: Tensor, var: Tensor, exact: Exact) -> float:
    """How far the exact statistics are from these, root mean square over the channels; inf where that is not finite.

    In standard deviations of these, sqrt(var + eps): so much is a value off that they normalize.
    """
    found = distance(*exact, mean, var, _eps(layer)).square().mean().sqrt()
    return float(found.nan_to_num(nan=float("inf")))


def _eps(layer: nn.Module) -> float:
    return float(getattr(layer, "eps", 0.0) or 0.0)


def _seen(layer: Layer, accumulator: Accumulator, forward: Forward) -> Forward:
    """`forward`, whose inputs are taken in."""

    def seen(*args: Any, **kwargs: Any) -> Any:
        x, mask = arguments(layer.module, args, kwargs)
        accumulator.add(sample(x, mask, layer.per_instance))
        return forward(*args, **kwargs)

    return seen


def _empty(layer: Layer) -> Accumulator:
    mean, _ = running_statistics(layer.module)
    return Accumulator.empty(mean.numel(), mean.device, layer.per_instance)
