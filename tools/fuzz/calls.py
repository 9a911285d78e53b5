"""What programs call besides a norm: what normkit does in one call, and sums. Scripts hold the functions they use."""

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
    """Never in place, as normkit: torch would refuse a tensor that it must not write to."""
    if getattr(activation, "inplace", False):
        activation.inplace = False
    return getattr(F, activation)(y) if isinstance(activation, str) else activation(y)


def contracted(dy: Tensor, jacobian: Tensor) -> Tensor:
    """dy times a Jacobian, (*y, *x): the gradient. Not a product of matrices, which autocast takes to bfloat16."""
    return (dy.reshape(*dy.shape, *[1] * dy.dim()) * jacobian).sum(tuple(range(dy.dim())))
