"""Root mean square normalization (Zhang & Sennrich 2019): layer norm without the mean and without the bias.

x: (*, *normalized_shape); mean_square: the leading shape; weight: normalized_shape. m = prod(normalized_shape).

    mean_square = sum(x^2)/m        xhat = x/sqrt(mean_square + eps)        y = weight*xhat

eps is inside the root, as in torch. A mask covers the leading axes only, as in layer norm.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from normkit.reference._moments import count, select, total
from normkit.reference.layer_norm import leading_mask, normalized_axes


def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Divide each position by its root mean square: (y: x's shape, mean_square: the leading shape)."""
    axes = normalized_axes(x, normalized_shape)
    keep = leading_mask(mask, x, axes)
    x = select(x, keep)
    mean_square = total(x**2, axes) / count(x, axes)
    xhat = x / (mean_square + eps).sqrt()
    return select(xhat if weight is None else xhat * weight, keep), mean_square.squeeze(axes)


def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(dx: x's shape, dweight: normalized_shape) from dy: x's shape, one line per step."""
    axes = normalized_axes(x, normalized_shape)
    keep = leading_mask(mask, x, axes)
    x, dy, m, leading = select(x, keep), select(dy, keep), count(x, axes), tuple(range(axes[0]))
    mean_square = total(x**2, axes) / m
    xhat = x / (mean_square + eps).sqrt()

    dweight = (dy * xhat).sum(leading) if leading else dy * xhat
    dxhat = dy if weight is None else dy * weight
    dmean_square = total(dxhat * x, axes) * (-1 / 2) * (mean_square + eps) ** (-3 / 2)
    dx = dxhat / (mean_square + eps).sqrt() + dmean_square * 2 * x / m
    return dx, dweight
