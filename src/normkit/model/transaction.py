"""Changing a model wholly or not at all.

    with Transaction(model) as change, change:
        ...                      # everything is computed
        change.commit(write)     # then it is written

Rules: whatever leaves the block before `commit` is over (an error, Ctrl-C) leaves the model as it was, with the same
module, parameter and buffer objects. Signals that arrive while it writes, or while it gives back, wait until that is
done. Changes that must be tried before they count, as a fold that is verified, are made inside the block and undone
with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from .ambient import Switches
from .interrupts import Guard, HeldBack
from .kept import Kept

T = TypeVar("T")


class Transaction(Guard):
    """One change. Entered twice, as every `Guard`. roots: the models, and layers outside of them that will change."""

    def __init__(self, *roots: nn.Module) -> None:
        self._roots, self._kept = roots, Kept(*roots)
        self._switches = Switches()
        self._committed = False

    def keep_values(self, *tensors: Tensor | None) -> None:
        """To be called before the values of these tensors are written; of others only identity and memory come back."""
        self._kept.keep_values(*tensors)

    def commit(self, write: Callable[[], object]) -> None:
        """Write; from then on the change stands."""
        with HeldBack() as held, held:
            write()
            self._committed = True

    def undo(self) -> None:
        """Make everything what it was when the transaction began; it may go on from there."""
        self._kept.give_back()

    def before(self, look: Callable[[], T]) -> T:
        """What `look` gives on everything as it was when the transaction began; afterwards it is as it is now."""
        now = Kept(*self._roots)
        self.undo()
        try:
            return look()
        finally:
            now.give_back()

    def give_back(self) -> None:
        self._switches.give_back()
        if not self._committed:
            self.undo()
