"""Batch normalization (Ioffe & Szegedy 2015): forward, and the backward derived step by step.

x: (N, C, *); weight (gamma), bias (beta), mean, var: (C,). m = number of values of a channel = N * prod(*).

    mean = sum(x)/m     var = sum((x-mean)^2)/m     xhat = (x-mean)/sqrt(var+eps)     y = weight*xhat + bias

The variance is biased. With a mask (N, *) or (N, 1, *), True = a real value, m counts real values, sums run over them,
outputs and input gradients are 0 elsewhere. weight=None means 1, bias=None means 0; `dweight` and `dbias` are what
they would be. `docs/maths/batch_norm.md` derives each line.
"""

from __future__ import annotations

from torch import Tensor

from normkit.reference._moments import count, moments, select, spatial_mask, total


def channel_axes(x: Tensor) -> tuple[int, ...]:
    """The axes that a channel's statistics run over: all but axis 1."""
    return (0, *range(2, x.ndim))


def per_channel(value: Tensor | None, x: Tensor, default: float) -> Tensor:
    """A value of shape (C,) as (1, C, 1, ...), which broadcasts against x; None as the default."""
    if value is None:
        return x.new_full((), default)
    return value.reshape(1, -1, *[1] * (x.ndim - 2))


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize with the batch's own statistics: (y: (N, C, *), mean: (C,), biased var: (C,))."""
    keep = spatial_mask(mask, x)
    mean, var, centred = moments(x, channel_axes(x), keep)
    xhat = centred / (var + eps).sqrt()
    y = per_channel(weight, x, 1) * xhat + per_channel(bias, x, 0)
    return select(y, keep), mean.flatten(), var.flatten()


def batch_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: (N, C, *), dweight: (C,), dbias: (C,)) from dy: (N, C, *), one line per step, as the paper has it."""
    axes, keep = channel_axes(x), spatial_mask(mask, x)
    dy, m = select(dy, keep), count(x, axes, keep)
    _, var, centred = moments(x, axes, keep)
    xhat = centred / (var + eps).sqrt()

    dbias = total(dy, axes)
    dweight = total(dy * xhat, axes)
    dxhat = dy * per_channel(weight, x, 1)
    dvar = total(dxhat * centred, axes) * (-1 / 2) * (var + eps) ** (-3 / 2)
    dmean = -total(dxhat / (var + eps).sqrt(), axes) + dvar * total(-2 * centred, axes) / m
    dx = dxhat / (var + eps).sqrt() + dvar * 2 * centred / m + dmean / m
    return select(dx, keep), dweight.flatten(), dbias.flatten()


def batch_norm_backward_collapsed(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same three gradients in the form that fused kernels use: `weight*rstd*(dy - dbias/m - xhat*dweight/m)`."""
    axes, keep = channel_axes(x), spatial_mask(mask, x)
    dy, m = select(dy, keep), count(x, axes, keep)
    _, var, centred = moments(x, axes, keep)
    rstd = 1 / (var + eps).sqrt()
    xhat = centred * rstd

    dbias = total(dy, axes)
    dweight = total(dy * xhat, axes)
    dx = per_channel(weight, x, 1) * rstd * (dy - dbias / m - xhat * dweight / m)
    return select(dx, keep), dweight.flatten(), dbias.flatten()


def batch_norm_inference(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Normalize with given statistics, `mean` and `var`: (C,), which are constants for the backward."""
    xhat = (x - per_channel(mean, x, 0)) / (per_channel(var, x, 1) + eps).sqrt()
    y = per_channel(weight, x, 1) * xhat + per_channel(bias, x, 0)
    return select(y, spatial_mask(mask, x))


def batch_norm_inference_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    eps: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias) of `batch_norm_inference`: nothing flows through the statistics."""
    axes, keep = channel_axes(x), spatial_mask(mask, x)
    dy = select(dy, keep)
    rstd = 1 / (per_channel(var, x, 1) + eps).sqrt()
    xhat = select((x - per_channel(mean, x, 0)) * rstd, keep)
    dx = dy * per_channel(weight, x, 1) * rstd
    return dx, total(dy * xhat, axes).flatten(), total(dy, axes).flatten()
