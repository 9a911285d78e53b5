"""Run one model over the same batches with some of its layers under other statistics than their running ones.

Rules: every pass begins with the same model and the same random numbers and gives both back; batches are held, so that
a loader which shuffles or augments shows each pass the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from ..model.dataflow import cloned
from ..model.restore import Restored
from ..statistics import batches as feeding
from ..statistics.layers import Layer, find
from ..statistics.stand_in import put_in, sampling, under
from .exact import Exact, StandIns, empty, refined

T = TypeVar("T")
Read = Callable[[int, Any, Any], T]  # (number of the batch, output, batch) -> what is kept of the answer


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
        first = {layer.module: empty(layer) for layer in free}
        order: list[nn.Module] = []
        answers = self._pass(read, lambda: {x.module: sampling(x, first[x.module], order) for x in free})
        known = {layer.module: layer for layer in free}
        layers = [known[module] for module in order]
        self.exact = refined(layers, first, lambda stand_ins: self._pass(lambda *_: None, stand_ins))
        self.layers = [layer for layer in layers if layer.module in self.exact]
        return answers

    def run(self, exact: Collection[nn.Module], read: Read[T], *, training: bool = False) -> list[T]:
        """The answers with these layers under their exact statistics and the others under their running ones.

        training: every module but the layers with running statistics is in training mode, if it is one that trains:
        dropout drops, stochastic depth skips.
        """
        return self._pass(read, lambda: {module: under(module, *self.exact[module]) for module in exact}, training)

    def _pass(self, read: Read[T], forwards: Callable[[], StandIns], training: bool = False) -> list[T]:
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
