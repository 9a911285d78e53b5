"""An addition in front of layer or RMS norm, the step of a transformer's block: (norm(x + residual), x + residual).

x, residual, total: (*, *normalized_shape). The sum has a reader besides the norm, the next addition, so its gradient is
a sum as well:

    total = x + residual        y = norm(total)        dx = dresidual = dtotal + (the norm's gradient by dy)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from normkit.reference.layer_norm import layer_norm, layer_norm_backward
from normkit.reference.rms_norm import rms_norm, rms_norm_backward


def add_rms_norm(
    x: Tensor, residual: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(y, total), both of x's shape."""
    total = x + residual
    return rms_norm(total, normalized_shape, weight, eps)[0], total


def add_rms_norm_backward(
    dy: Tensor, dtotal: Tensor, total: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(dx, which is dresidual too, dweight) from the gradients of both results."""
    dx, dweight = rms_norm_backward(dy, total, normalized_shape, weight, eps)
    return dtotal + dx, dweight


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """(y, total), both of x's shape."""
    total = x + residual
    return layer_norm(total, normalized_shape, weight, bias, eps)[0], total


def add_layer_norm_backward(
    dy: Tensor, dtotal: Tensor, total: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, which is dresidual too, dweight, dbias) from the gradients of both results."""
    dx, dweight, dbias = layer_norm_backward(dy, total, normalized_shape, weight, eps)
    return dtotal + dx, dweight, dbias
