"""Instance normalization (Ulyanov, Vedaldi & Lempitsky 2016): the statistics of one channel of one sample.

x: (N, C, *); mean, var: (N, C); weight, bias: (C,). m = prod(*), biased variance: group norm with C groups, batch norm
with N = 1 for each sample. With a mask (N, *) or (N, 1, *), True = a real value, sums run over real values only;
outputs and input gradients are 0 elsewhere. With running statistics it is `batch_norm_inference`.
"""

from __future__ import annotations

from torch import Tensor

from normkit.reference._moments import count, moments, select, spatial_mask, total
from normkit.reference.batch_norm import channel_axes, per_channel


def spatial_axes(x: Tensor) -> tuple[int, ...]:
    """The axes that the statistics run over: all but N and C."""
    return tuple(range(2, x.ndim))


def instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each channel of each sample: (y: (N, C, *), mean: (N, C), biased var: (N, C))."""
    keep = spatial_mask(mask, x)
    mean, var, centred = moments(x, spatial_axes(x), keep)
    xhat = centred / (var + eps).sqrt()
    y = per_channel(weight, x, 1) * xhat + per_channel(bias, x, 0)
    return select(y, keep), mean.flatten(1), var.flatten(1)


def instance_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: (N, C, *), dweight: (C,), dbias: (C,)) from dy: (N, C, *), one line per step."""
    axes, keep = spatial_axes(x), spatial_mask(mask, x)
    dy, m = select(dy, keep), count(x, axes, keep)
    _, var, centred = moments(x, axes, keep)
    xhat = centred / (var + eps).sqrt()

    dbias = total(dy, channel_axes(x))
    dweight = total(dy * xhat, channel_axes(x))
    dxhat = dy * per_channel(weight, x, 1)
    dvar = total(dxhat * centred, axes) * (-1 / 2) * (var + eps) ** (-3 / 2)
    dmean = -total(dxhat / (var + eps).sqrt(), axes) + dvar * total(-2 * centred, axes) / m
    dx = dxhat / (var + eps).sqrt() + dvar * 2 * centred / m + dmean / m
    return select(dx, keep), dweight.flatten(), dbias.flatten()


def running_instance_statistics(mean: Tensor, var: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """What moves the running statistics, (C,) each: the averages over N of mean and of m/(m-1) var, both (N, C)."""
    if m < 2:
        raise ValueError(f"expected more than 1 value per instance for an unbiased variance (got {m})")
    return mean.mean(0), (var * m / (m - 1)).mean(0)
