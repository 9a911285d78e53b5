"""Which dtype statistics are kept in: float64, or float32 where a device has none or is slow at it. A leaf.

Rule: `float64_on` alone knows devices. A float64 input is computed in float64 wherever that exists.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._torch import asked_while_traced

# (major, minor) of NVIDIA's chips that compute float64 at half of float32's rate; all others at a 32nd or a 64th.
_FAST = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})
_FAST_ON_AMD = 9  # major: the Instinct line; the others, 10 and more, are made for graphics


def float64_on(device: torch.device) -> Literal["fast", "slow", "none"]:
    """How a device computes in float64; "fast": a pass over memory in it costs what its bytes cost."""
    if device.type == "mps":
        return "none"
    if device.type == "xpu":
        return _on_xpu(device)
    return _on_cuda(device) if device.type == "cuda" else "fast"


@asked_while_traced
def _on_cuda(device: torch.device) -> Literal["fast", "slow"]:
    if not torch.cuda.is_available():
        return "fast"  # a fake tensor: nothing is computed
    major, minor = torch.cuda.get_device_capability(device)
    fast = major == _FAST_ON_AMD if torch.version.hip else (major, minor) in _FAST
    return "fast" if fast else "slow"


@asked_while_traced
def _on_xpu(device: torch.device) -> Literal["fast", "none"]:
    if not torch.xpu.is_available():
        return "fast"
    return "fast" if getattr(torch.xpu.get_device_properties(device), "has_fp64", False) else "none"


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """The dtype that all values of `x` are widened to: float64, or float32 where that is slow or missing."""
    speed = float64_on(x.device)
    return torch.float64 if speed == "fast" or (speed == "slow" and x.dtype == torch.float64) else torch.float32


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest dtype of a device, for a few numbers a channel: float64, or float32 where there is none."""
    return torch.float32 if float64_on(device) == "none" else torch.float64
