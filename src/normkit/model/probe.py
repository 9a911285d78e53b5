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
        probe.train()  # on its own: some return nothing
        probe.forward(x)
        return not torch.equal(probe.running_mean, before)

    return _tried(norm, run, channels, spatial)


def eps_of(norm: nn.Module, channels: int, spatial: int | None) -> float | None:
    r"""The eps of a layer that keeps it to itself: with mean 0, variance 0 and weight 1, y = x / \sqrt{eps}."""

    def run(probe: Any, x: Tensor) -> float:
        for name, value in (("running_mean", 0), ("running_var", 0), ("weight", 1), ("bias", 0)):
            getattr(probe, name).data.fill_(value)
        probe.eval()
        y = probe.forward(torch.ones_like(x)).flatten()[0]
        return float(f"{float(y) ** -2:.9g}")  # 9 digits: a float32 constant or root inside is exact to 7

    found = _tried(norm, run, channels, spatial)
    return found if found is not None and 0 < found < 1 else None


def centres_images(norm: nn.Module, channels: int) -> bool:
    """Whether (N, C, H, W) is normalized over axis 1: what all channels of a position share is taken off, and what a
    channel has at all positions is not."""

    def run(probe: Any, x: Tensor) -> bool:
        probe.eval()
        shared, own = torch.randn_like(x[:, :1]), torch.randn_like(x[:1, :, :1, :1])
        y = probe.forward(x)
        gone, left = (torch.allclose(probe.forward(x + more), y, 1e-4, 1e-4) for more in (shared, own))
        return gone and not left  # 1e-4: some compute in float32, and both shifts are of order one

    sizes = (4, channels, 2, 3 if channels != 3 else 5)  # W is not C: a norm over the last axis refuses it
    return _on_copy(norm, run, sizes) is True


def _tried(norm: nn.Module, run: Callable[[Any, Tensor], T], channels: int, spatial: int | None) -> T | None:
    """The first result of `run` on a float64 copy and (4, C, 3, ...), over the shapes that the layer may take."""
    for dimensions in dict.fromkeys((spatial if spatial is not None else 2, 0, 1, 3)):
        found = _on_copy(norm, run, (4, channels, *[3] * dimensions))
        if found is not None:
            return found
    return None


def _on_copy(norm: nn.Module, run: Callable[[Any, Tensor], T], shape: tuple[int, ...]) -> T | None:
    """`run` on a float64 copy and a random input of this shape, or None where that fails."""
    try:
        probe = copy.deepcopy(norm).double().cpu()
        with Restored(probe) as restored, restored:
            return run(probe, torch.randn(shape, dtype=torch.float64))
    except Exception:
        return None
