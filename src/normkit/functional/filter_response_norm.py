"""Filter response normalization as a function: no mean, no batch, and a threshold in place of an activation."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _shapes
from .._fx import traceable
from .._operands import Modulate, Operands
from ..kernels import composed
from ..moments import spread
from . import _dtypes, _storage
from .mask import known_mask
from .modulate import lay, pair


@traceable
def filter_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: float | Tensor = 1e-6,
    *,
    mask: Tensor | None = None,
    modulate: Modulate = None,
) -> Tensor:
    r"""Filter response normalization: each sample's channels are divided by their root mean square over the positions.

    .. math:: y = \max\Big(\frac{x}{\sqrt{\mathrm{mean}_{n,c}(x^2) + |\epsilon|}} \cdot \mathrm{weight}_c +
              \mathrm{bias}_c,\ \mathrm{threshold}_c\Big)

    Args:
        input: (N, C, *), real floating point. Training and evaluation are the same.
        weight, bias: (C,), or None (1 and 0).
        threshold: (C,), the paper's tau; None: no threshold.
        eps: added to the mean square, inside the square root; a tensor of one value or of (C,) may be learned, and its
            absolute value counts.
        mask: bool, (N, *) or (N, 1, *), True = a real value. The mean square is that of the real values; outputs
            elsewhere are zero.
        modulate: (scale, shift): scale * y + shift before the threshold; each a floating-point tensor (N, C), or of the
            input's rank that broadcasts to it, or None. docs/modulate.md.

    Returns:
        The input's shape and dtype, computed in the moments' dtype, differentiable through all tensors.

    Raises:
        RuntimeError: an input of fewer than 2 axes; parameters without one value a channel.
        TypeError, ValueError: a mask that is not bool, or that does not fit.

    Reference: Singh & Krishnan (2020), Filter Response Normalization Layer. https://arxiv.org/abs/1911.09737
    """
    _verify("filter_response_norm", input, weight=weight, bias=bias, threshold=threshold)
    scale, shift = pair(modulate)
    _storage.verify((input, weight, bias, threshold, eps if isinstance(eps, Tensor) else None, mask, scale, shift))
    mask = known_mask(input) if mask is None else mask
    operands = lay(Operands(input, None, None, None, _shapes.optional_channel_mask(mask, input), scale, shift))
    x = composed.cleared(composed.widened(operands), operands.mask)
    beside = _shapes.channel_shape(x.dim(), x.shape[1])
    least = eps.abs().to(x.dtype) if isinstance(eps, Tensor) else abs(eps)
    if isinstance(least, Tensor) and least.numel() > 1:
        least = least.reshape(beside)
    y = x * torch.rsqrt(_mean_square(x, operands.mask) + least)
    for parameter, operation in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            y = operation(y, spread(parameter.to(x.dtype).reshape(beside), x))
    y = composed.modulated(y, operands)
    if threshold is not None:
        y = torch.maximum(y, spread(threshold.to(x.dtype).reshape(beside), x))
    return composed.cleared(y.to(input.dtype), operands.mask)


def _mean_square(x: Tensor, mask: Tensor | None) -> Tensor:
    """Of x: (N, C, *), zero under the mask: (N, C, 1, ...)."""
    positions = tuple(range(2, x.dim()))
    squares = x.square()
    if mask is None:
        return squares.mean(positions, keepdim=True) if positions else squares
    count = mask.expand_as(x).sum(positions, keepdim=True).clamp(min=1) if positions else 1
    total = squares.sum(positions, keepdim=True) if positions else squares
    real = mask.any(dim=2, keepdim=True) if positions else mask
    for axis in range(3, x.dim()):
        real = real.any(dim=axis, keepdim=True)
    return torch.where(real, total / count, 1)  # a sample without a real value: zeros, and no NaN of eps = 0


def _verify(function: str, input: Tensor, **parameters: Tensor | None) -> None:
    if input.dim() < 2:
        raise RuntimeError(f"{function}: expected an input (N, C, *), got the shape {tuple(input.shape)}")
    _dtypes.verify(function, input)
    _shapes.verify_per_channel(input.shape[1], **parameters)
