"""Global response normalization (Woo et al. 2023, ConvNeXt V2): a channel's norm beside the mean norm of the channels.

x: (N, C, *), with at least one axis of positions; weight, bias: (C,); g, a: (N, C) and (N, 1), laid beside x.

    g = sqrt(sum x^2)        a = mean_c(g) + eps        y = x + weight * x * g/a + bias

The sum runs over the positions of one channel of one sample. A mask (N, *) says which values are real: g is theirs,
outputs and gradients elsewhere are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.reference._moments import select, spatial_mask, total
from normkit.reference.batch_norm import channel_axes, per_channel


def global_response_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, mask: Tensor | None = None) -> Tensor:
    """y: x's shape."""
    keep = spatial_mask(mask, x)
    x = select(x, keep)
    g = total(x**2, tuple(range(2, x.ndim))).sqrt()
    a = g.mean(1, keepdim=True) + eps
    return select(x + per_channel(weight, x, 1) * x * (g / a) + per_channel(bias, x, 0), keep)


def global_response_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: x's shape, dweight, dbias: (C,)) from dy: x's shape, one line per step; g = 0 has the slope 0."""
    keep = spatial_mask(mask, x)
    x, dy = select(x, keep), select(dy, keep)
    axes = tuple(range(2, x.ndim))
    g = total(x**2, axes).sqrt()
    a = g.mean(1, keepdim=True) + eps

    dbias = dy.sum(channel_axes(x))
    dweight = (dy * x * (g / a)).sum(channel_axes(x))
    dscaled = dy * per_channel(weight, x, 1)
    dratio = total(dscaled * x, axes)
    dg = dratio / a - (dratio * g / a**2).sum(1, keepdim=True) / x.shape[1]
    dx = dy + dscaled * (g / a) + dg * torch.where(g > 0, x / g, 0)
    return dx, dweight, dbias
