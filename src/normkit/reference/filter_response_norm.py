"""Filter response normalization (Singh & Krishnan 2020): no mean is taken off, and no batch is looked at.

x: (N, C, *), with at least one axis of positions; weight, bias, threshold: (C,), eps: a number. m = how many positions.

    mean_square = sum(x^2)/m        xhat = x/sqrt(mean_square + eps)        z = weight*xhat + bias
    y = max(z, threshold)

eps is inside the root; sums run over the positions of one channel of one sample. A mask (N, *) says which values are
real: mean_square is that of the real values, outputs and gradients elsewhere are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.reference._moments import count, select, spatial_mask, total
from normkit.reference.batch_norm import channel_axes, per_channel


def _positions(x: Tensor) -> tuple[int, ...]:
    if x.ndim < 3:
        raise ValueError(f"expected x: (N, C, *) with an axis of positions (got {tuple(x.shape)})")
    return tuple(range(2, x.ndim))


def filter_response_norm(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor, eps: float, mask: Tensor | None = None
) -> Tensor:
    """y: x's shape."""
    keep, axes = spatial_mask(mask, x), _positions(x)
    x = select(x, keep)
    mean_square = total(x**2, axes) / count(x, axes, keep)
    xhat = x / (mean_square + eps).sqrt()
    z = xhat * per_channel(weight, x, 1) + per_channel(bias, x, 0)
    return select(torch.maximum(z, per_channel(threshold, x, 0)), keep)


def filter_response_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx: x's shape, dweight, dbias, dthreshold: (C,), deps: a number) from dy: x's shape, one line per step."""
    keep, axes, others = spatial_mask(mask, x), _positions(x), channel_axes(x)
    x, dy = select(x, keep), select(dy, keep)
    m = count(x, axes, keep)
    mean_square = total(x**2, axes) / m
    xhat = x / (mean_square + eps).sqrt()
    z = xhat * per_channel(weight, x, 1) + per_channel(bias, x, 0)
    above = z > per_channel(threshold, x, 0)

    dthreshold = torch.where(above, 0, dy).sum(others)
    dz = torch.where(above, dy, 0)
    dweight = (dz * xhat).sum(others)
    dbias = dz.sum(others)
    dxhat = dz * per_channel(weight, x, 1)
    dmean_square = total(dxhat * x, axes) * (-1 / 2) * (mean_square + eps) ** (-3 / 2)
    dx = dxhat / (mean_square + eps).sqrt() + dmean_square * 2 * x / m
    return dx, dweight, dbias, dthreshold, dmean_square.sum()
