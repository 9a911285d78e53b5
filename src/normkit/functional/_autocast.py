"""What torch.autocast does to each norm, so that ours returns the dtypes that torch's returns.

Autocast knows PyTorch's operations by name and cannot see ours. Its lists (ATen/autocast_mode.h) hold layer_norm,
rms_norm and group_norm as operations that run in float32 on accelerators: their half-precision inputs are widened, and
the output is float32. batch_norm and instance_norm are in no list, and the CPU's lists hold no norm at all: there the
output has the input's dtype. docs/autocast.md is this table.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Devices whose autocast runs these norms in float32; every norm keeps its input's dtype elsewhere.
WIDENED: frozenset[str] = frozenset({"group_norm", "layer_norm", "rms_norm"})
WIDENING_DEVICES: frozenset[str] = frozenset({"cuda", "xpu", "mps"})


def widen(norm: str, input: Tensor) -> Tensor:
    """`input`, in float32 where autocast runs this norm in float32; parameters may stay as they are."""
    kind = input.device.type
    if kind not in WIDENING_DEVICES or norm not in WIDENED or not torch.is_autocast_enabled(kind):
        return input
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


def output_dtype(norm: str, device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype that `norm` returns under autocast on `device` for an input of `dtype`."""
    half = dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half and norm in WIDENED and device in WIDENING_DEVICES else dtype
