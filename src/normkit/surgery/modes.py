"""Running a model in evaluation and, if it can, in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

T = TypeVar("T")


def in_both_modes(model: nn.Module, run: Callable[[], T]) -> dict[bool, T]:
    """mode -> what `run` gave; training only where the model can. The modes are given back.

    Raises: what evaluation raises.
    """
    modes = {module: module.training for module in model.modules()}
    found: dict[bool, T] = {}
    try:
        for mode in (False, True):
            model.train(mode)  # on its own: some models' train() returns nothing
            found[mode] = run()
    except Exception:
        if not found:
            raise
    finally:
        for module, mode in modes.items():
            module.training = mode
    return found
