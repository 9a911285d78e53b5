"""Layer normalization (Ba, Kiros & Hinton 2016): the statistics of one position over the normalized axes.

x: (*, *normalized_shape), the normalized axes last; mean, var: the leading shape; weight, bias: normalized_shape.
m = prod(normalized_shape), biased variance. A mask covers the leading axes only: it says which positions are real and
zeroes the others' output and gradients; statistics belong to one position, so it changes no other value.
`layer_norm_2d` normalizes the channels of (N, C, *) at each position.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from normkit.reference._moments import count, moments, select, total


def normalized_axes(x: Tensor, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    """The axes that the statistics run over: as many trailing ones as `normalized_shape` has."""
    k = len(normalized_shape)
    if tuple(x.shape[x.ndim - k :]) != tuple(normalized_shape):
        raise ValueError(f"expected input whose shape ends in {tuple(normalized_shape)} (got {tuple(x.shape)})")
    return tuple(range(x.ndim - k, x.ndim))


def leading_mask(mask: Tensor | None, x: Tensor, axes: Sequence[int]) -> Tensor | None:
    """The mask of the leading shape with an axis of size 1 for each normalized axis."""
    if mask is None:
        return None
    if tuple(mask.shape) != tuple(x.shape[: axes[0]]):
        raise ValueError(f"expected a mask of the leading shape {tuple(x.shape[: axes[0]])} (got {tuple(mask.shape)})")
    return mask.reshape(*mask.shape, *[1] * len(axes))


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each position over the trailing axes: (y: x's shape, mean and biased var: the leading shape)."""
    axes = normalized_axes(x, normalized_shape)
    keep = leading_mask(mask, x, axes)
    mean, var, centred = moments(select(x, keep), axes)
    y = centred / (var + eps).sqrt()
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return select(y, keep), mean.squeeze(axes), var.squeeze(axes)


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: x's shape, dweight, dbias: normalized_shape) from dy: x's shape, one line per step."""
    axes = normalized_axes(x, normalized_shape)
    keep = leading_mask(mask, x, axes)
    dy, leading = select(dy, keep), tuple(range(axes[0]))
    m = count(x, axes)
    _, var, centred = moments(select(x, keep), axes)
    xhat = centred / (var + eps).sqrt()

    dbias = dy.sum(leading) if leading else dy
    dweight = (dy * xhat).sum(leading) if leading else dy * xhat
    dxhat = dy if weight is None else dy * weight
    dvar = total(dxhat * centred, axes) * (-1 / 2) * (var + eps) ** (-3 / 2)
    dmean = -total(dxhat / (var + eps).sqrt(), axes) + dvar * total(-2 * centred, axes) / m
    dx = dxhat / (var + eps).sqrt() + dvar * 2 * centred / m + dmean / m
    return dx, dweight, dbias


def layer_norm_2d(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over the channels of x: (N, C, *) at each position: (y: (N, C, *), mean, var: (N, *))."""
    y, mean, var = layer_norm(x.movedim(1, -1), (x.shape[1],), weight, bias, eps, mask)
    return y.movedim(-1, 1), mean, var


def layer_norm_2d_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: (N, C, *), dweight: (C,), dbias: (C,)) of `layer_norm_2d`."""
    dx, dweight, dbias = layer_norm_backward(dy.movedim(1, -1), x.movedim(1, -1), (x.shape[1],), weight, eps, mask)
    return dx.movedim(-1, 1), dweight, dbias
