"""What programs call besides a norm: what normkit does in one call, and sums. Scripts hold the functions they use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def add(y: Tensor, residual: Tensor) -> Tensor:
    """A residual does not change the dtype."""
    if residual.shape != y.shape:
        raise ValueError("residual must have the input's shape")
    return y + residual.to(y.dtype)


def modulated(y: Tensor, scale: Tensor | None, shift: Tensor | None, axes: int) -> Tensor:
    """scale * y + shift in the dtype of y. axes: how many last ones the norm covers; 0: channels at axis 1, -1: at 0.

    In the short forms one axis stands for a sample, the others for what the norm's weight has.
    """
    rank, z = y.dim(), y
    for i, t in enumerate((scale, shift)):
        if t is None:
            continue
        if not t.is_floating_point():
            raise TypeError("modulate: expected a floating-point tensor")
        if axes <= 0 and t.dim() == 2 + axes:
            t = t.reshape(*t.shape, *[1] * (rank - t.dim()))
        elif 0 < axes < rank and t.dim() == axes + 1:
            t = t.reshape(t.shape[0], *[1] * (rank - t.dim()), *t.shape[1:])
        fits = t.dim() in ((0, rank, axes) if axes > 0 else (0, rank))
        if not fits or any(size not in (1, y.shape[-1 - i]) for i, size in enumerate(reversed(t.shape))):
            raise ValueError("modulate: the shape does not fit")
        z = z + t if i else z * t
    return z.to(y.dtype)


def activate(y: Tensor, activation: Any) -> Tensor:
    """Never in place, as normkit: torch would refuse a tensor that it must not write to."""
    if getattr(activation, "inplace", False):
        activation.inplace = False
    return getattr(F, activation)(y) if isinstance(activation, str) else activation(y)


def contracted(dy: Tensor, jacobian: Tensor) -> Tensor:
    """dy times a Jacobian, (*y, *x): the gradient. Not a product of matrices, which autocast takes to bfloat16."""
    return (dy.reshape(*dy.shape, *[1] * dy.dim()) * jacobian).sum(tuple(range(dy.dim())))


def where_given(hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor | None], Tensor | None]:
    """Of two outputs of one Function one may have no gradient: autograd calls its hook with None."""
    return lambda gradient: None if gradient is None else hook(gradient)
