"""Group normalization (Wu & He 2018): the statistics of a group of channels within one sample.

x: (N, C, *), seen as (N, G, C/G, *); mean, var: (N, G); weight, bias: (C,). m = C/G * prod(*), biased variance.

    mean = sum(x)/m     var = sum((x-mean)^2)/m     xhat = (x-mean)/sqrt(var+eps)     y = weight*xhat + bias

No sum runs over N, so a sample's output does not depend on the rest of its batch. With a mask (N, *) or (N, 1, *),
True = a real value, sums run over real values only; outputs and input gradients are 0 elsewhere.
"""

from __future__ import annotations

from torch import Tensor

from normkit.reference._moments import count, moments, select, spatial_mask, total
from normkit.reference.batch_norm import channel_axes, per_channel


def split_groups(x: Tensor, num_groups: int) -> Tensor:
    """x: (N, C, *) as (N, G, C/G, *)."""
    if x.shape[1] % num_groups:
        raise ValueError(f"expected num_channels divisible by num_groups (got {x.shape[1]} and {num_groups})")
    return x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, *x.shape[2:])


def group_axes(xg: Tensor) -> tuple[int, ...]:
    """The axes that a group's statistics run over in (N, G, C/G, *): all but the first two."""
    return tuple(range(2, xg.ndim))


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each group of channels of each sample: (y: (N, C, *), mean: (N, G), biased var: (N, G))."""
    keep = spatial_mask(mask, x)
    xg = split_groups(x, num_groups)
    mean, var, centred = moments(xg, group_axes(xg), None if keep is None else keep.unsqueeze(1))
    xhat = (centred / (var + eps).sqrt()).reshape(x.shape)
    y = per_channel(weight, x, 1) * xhat + per_channel(bias, x, 0)
    return select(y, keep), mean.flatten(1), var.flatten(1)


def group_norm_backward(
    dy: Tensor, x: Tensor, num_groups: int, weight: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: (N, C, *), dweight: (C,), dbias: (C,)) from dy: (N, C, *), one line per step."""
    keep = spatial_mask(mask, x)
    dy = select(dy, keep)
    xg, group_keep = split_groups(x, num_groups), None if keep is None else keep.unsqueeze(1)
    axes = group_axes(xg)
    m = count(xg, axes, group_keep)
    _, var, centred = moments(xg, axes, group_keep)
    xhat = (centred / (var + eps).sqrt()).reshape(x.shape)

    # The affine part belongs to channels, the statistics to groups: weight enters before the sums over a group.
    dbias = total(dy, channel_axes(x))
    dweight = total(dy * xhat, channel_axes(x))
    dxhat = split_groups(dy * per_channel(weight, x, 1), num_groups)
    dvar = total(dxhat * centred, axes) * (-1 / 2) * (var + eps) ** (-3 / 2)
    dmean = -total(dxhat / (var + eps).sqrt(), axes) + dvar * total(-2 * centred, axes) / m
    dx = dxhat / (var + eps).sqrt() + dvar * 2 * centred / m + dmean / m
    return select(dx.reshape(x.shape), keep), dweight.flatten(), dbias.flatten()


def group_norm_backward_collapsed(
    dy: Tensor, x: Tensor, num_groups: int, weight: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same gradients as kernels compute them: `rstd*(dxhat - mean(dxhat) - xhat*mean(dxhat*xhat))` per group."""
    keep = spatial_mask(mask, x)
    dy = select(dy, keep)
    xg, group_keep = split_groups(x, num_groups), None if keep is None else keep.unsqueeze(1)
    axes = group_axes(xg)
    m = count(xg, axes, group_keep)
    _, var, centred = moments(xg, axes, group_keep)
    rstd = 1 / (var + eps).sqrt()
    xhat = centred * rstd

    dxhat = split_groups(dy * per_channel(weight, x, 1), num_groups)
    dx = rstd * (dxhat - total(dxhat, axes) / m - xhat * total(dxhat * xhat, axes) / m)
    dweight = total(dy * xhat.reshape(x.shape), channel_axes(x))
    return select(dx.reshape(x.shape), keep), dweight.flatten(), total(dy, channel_axes(x)).flatten()
