"""What torch.autocast does to each norm, so that ours returns the dtypes that torch's returns.

Autocast knows PyTorch's operations by name and cannot see ours. On accelerators it runs some norms in float32: their
half-precision inputs are widened, and the output is float32. Which ones differs by device and release, so the
installed torch is asked. The CPU's list holds no norm: there the output has the input's dtype. docs/autocast.md is the
table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _torch

# Devices whose rules for norms, where there are any, are all of them "in float32".
WIDENING_DEVICES: frozenset[str] = frozenset({"cuda", "xpu", "mps"})


def widens(norm: str, device: str) -> bool:
    """Whether autocast runs this norm in float32 on this kind of device."""
    operation = "batch_norm" if norm == "instance_norm" else norm  # which is what torch's instance_norm calls
    return device in WIDENING_DEVICES and _torch.autocast_knows(operation, device)


def widen(norm: str, input: Tensor) -> Tensor:
    """`input`, in float32 where autocast runs this norm in float32; parameters may stay as they are."""
    kind = input.device.type
    if not widens(norm, kind) or not torch.is_autocast_enabled(kind):  # torch 2.4 raises where mps is asked for
        return input
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def output_dtype(norm: str, device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that `norm` returns under autocast on `device` for an input of `dtype`."""
    half = dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and widens(norm, device) else dtype
