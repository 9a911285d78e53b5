"""Giving a model back as it was: one promise, kept here for everything that looks at a model or changes it.

What comes back, the same objects with the same content:

- the modules and their places, training modes, hooks, plain attributes, and what lists, dicts and sets in them hold;
- parameters, buffers and other tensors that attributes hold: memory, values, requires_grad, .grad;
- the random states of torch, Python and NumPy, gradient mode, autocast and the like.

Values are written back only where they differ. What objects of other classes hold is theirs; a lazy layer that got its
shape keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from .ambient import RandomStates, Switches
from .interrupts import Guard
from .kept import Kept

T = TypeVar("T")


class Restored(Guard):
    """Inside, the model may be run and changed; afterwards it is what it was. Entered twice, as every `Guard`.

    No gradients are recorded inside, and compiled parts run as written: code that Dynamo wrote calls no module.
    evaluating: all modules are in evaluation mode inside; flags only, for `eval()` may be overridden and do more.
    kept: what the model is, with its values, where that is known already. Costs a copy of the model's tensors.
    """

    def __init__(self, model: nn.Module, *, evaluating: bool = False, kept: Kept | None = None) -> None:
        self.model, self.evaluating = model, evaluating
        self.kept = Kept(model, values=True) if kept is None else kept
        self._random = RandomStates(self.kept.devices())
        self._switches = Switches()

    def begin(self) -> None:
        self._switches.run_eagerly()
        torch.set_grad_enabled(False)
        if self.evaluating:
            for module in self.model.modules():
                module.training = False

    def give_back(self) -> None:
        self._switches.give_back()
        self._random.give_back()
        self.kept.give_back()


def in_both_modes(model: nn.Module, run: Callable[[], T], kept: Kept | None = None) -> dict[bool, T]:
    """mode -> what `run` gave in it: in evaluation, and in training if the model can. Each gets the model as it is.

    kept: as in `Restored`. Raises: what evaluation raises.
    """
    found: dict[bool, T] = {}
    kept = Kept(model, values=True) if kept is None else kept
    for mode in (False, True):
        try:
            with Restored(model, kept=kept) as restored, restored:
                model.train(mode)  # on its own: some models' train() returns nothing
                found[mode] = run()
        except Exception:
            if not found:
                raise
    return found
