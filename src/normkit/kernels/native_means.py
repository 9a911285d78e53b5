"""What the values of one statistic want of each other in a derivative, by an evaluation with given statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._activation import IDENTITY
from .._operands import Maybe, Operands
from .._shapes import channel_shape

# A kernel multiplies by rstd once more, and where its square is far from 1 the product leaves the range of float32.
_LEAST, _MOST = 1e-10, 1e12


def in_float32(
    run: Callable[[Tensor, Operands], Sequence[Maybe]], dy: Tensor, operands: Operands
) -> tuple[Maybe, ...]:  # fmt: skip
    """run(dy, operands): the gradients of input, weight, bias and one more tensor of the input's size.

    Those of float16 by tensors in float32: rstd * weight * dy alone may overflow where the means take most of it away.
    """
    input, residual, scale = operands.input, operands.residual, operands.scale
    if input.dtype != torch.float16:
        return tuple(run(dy, operands))
    residual, scale = (None if t is None else t.float() for t in (residual, scale))
    wide = operands._replace(input=input.float(), residual=residual, scale=scale)
    dx, dweight, dbias, other = run(dy.float(), wide)
    dx, other = (None if t is None else t.half() for t in (dx, other))
    return dx, dweight, dbias, other


def add_means(
    forward: Callable[..., Any],
    dx: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> Tensor:
    """dx + rstd * (weight * xhat + bias), xhat = (x - mean) * rstd, in one pass over memory.

    forward: the core's `channel_forward`. weight, bias, mean, var: (C,), float64.
    """
    rstd = (var + eps).rsqrt()
    settings = (mean, var, 0, eps, IDENTITY, 0.0, False, ())
    least, most = rstd.aminmax() if rstd.numel() else (1.0, 1.0)
    if x.dtype == torch.float64 or (least >= _LEAST and most <= _MOST):
        return forward(x, dx, rstd * weight, rstd * bias, *settings)[0]
    y = forward(x, None, weight, bias, *settings)[0]
    laid = rstd.to(torch.promote_types(x.dtype, torch.float32)).view(channel_shape(x.dim(), x.shape[1]))
    return (dx + y * laid).to(dx.dtype)
