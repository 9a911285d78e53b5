"""What torch's side of a program calls to do what normkit does in one call. Scripts hold the functions they use."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def add(y: Tensor, residual: Tensor) -> Tensor:
    """A residual does not change the dtype."""
    if residual.shape != y.shape:
        raise ValueError("residual must have the input's shape")
    return y + residual.to(y.dtype)


def activate(y: Tensor, activation: Any) -> Tensor:
    return getattr(F, activation)(y) if isinstance(activation, str) else activation(y)
