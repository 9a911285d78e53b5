"""What a batch norm of somebody else does, found out with numbers instead of by its name.

Rules: a probe runs on a copy with an input of its own and is given its random numbers back; what cannot be tried is
None.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .restore import Restored

T = TypeVar("T")


def moves_statistics(norm: nn.Module, channels: int, spatial: int | None) -> bool | None:
    """Whether a forward in training moves running_mean. channels: C. spatial: dimensions after (N, C), if known."""

    def run(probe: Any, x: Tensor) -> bool:
        if isinstance(getattr(probe, "momentum", None), float):
            probe.momentum = 0.5  # and not the 0 that somebody may have set for a while
        before = probe.running_mean.clone()
        probe.train().forward(x)
        return not torch.equal(probe.running_mean, before)

    return _tried(norm, run, channels, spatial)


def eps_of(norm: nn.Module, channels: int, spatial: int | None) -> float | None:
    r"""The eps of a layer that keeps it to itself: with mean 0, variance 0 and weight 1, y = x / \sqrt{eps}."""

    def run(probe: Any, x: Tensor) -> float:
        for name, value in (("running_mean", 0), ("running_var", 0), ("weight", 1), ("bias", 0)):
            getattr(probe, name).data.fill_(value)
        y = probe.eval().forward(torch.ones_like(x)).flatten()[0]
        return float(f"{float(y) ** -2:.9g}")  # 9 digits: a float32 constant or root inside is exact to 7

    found = _tried(norm, run, channels, spatial)
    return found if found is not None and 0 < found < 1 else None


def _tried(norm: nn.Module, run: Callable[[Any, Tensor], T], channels: int, spatial: int | None) -> T | None:
    """The first result of `run` on a float64 copy and (4, C, 3, ...), over the shapes that the layer may take."""
    for dimensions in dict.fromkeys((spatial if spatial is not None else 2, 0, 1, 3)):
        try:
            probe = copy.deepcopy(norm).double().cpu()
            with Restored(probe) as restored, restored:
                return run(probe, torch.randn(4, channels, *[3] * dimensions, dtype=torch.float64))
        except Exception:
            continue
    return None
