"""Norms as differentiable torch operations, in float64 where the device has it.

This path serves what a fused kernel cannot: derivatives of every order, forward mode, torch.func transforms, tensor
subclasses, torch.compile, masks. It widens the input once, computes everything in the accumulator's dtype and rounds
once at the end, so it meets the numeric contract by construction: autograd differentiates the widened operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._activation import AFTER, NONE, Activation
from .._shapes import batch_dims, channel_shape
from ..moments import Moments, accumulator_dtype

FUSED_ACTIVATIONS = range(AFTER + 1, 1 << 8)  # every code: an activation without one may have parameters of its own
FUSES_RESIDUAL = True


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Batch norm under the batch's own statistics. input: (N, C, *); weight, bias: (C,); mask: (N, 1, *)."""
    wide = input.to(accumulator_dtype(input))  # once: two casts would round two halves of the gradient
    moments = Moments.of(wide, batch_dims(input.dim()), mask)
    return by_moments(wide, moments, weight, bias, eps, residual, activation, mask, input.dtype), moments


def by_moments(
    wide: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: Activation,
    mask: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """A norm of channels under these moments, in `dtype`. wide: (N, C, *), the tensor that the moments are of, where
    they are the input's own; weight, bias: (C,); mask: (N, 1, *)."""
    return finish_channels(standardize(wide, moments, eps, mask), weight, bias, residual, activation, mask, dtype)


def batch_norm_inference(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """Batch norm under given statistics. input: (N, C, *); mean, var, weight, bias: (C,); mask: (N, 1, *)."""
    wide = accumulator_dtype(input)
    shape = channel_shape(input.dim(), input.shape[1])
    x = input.to(wide) if mask is None else torch.where(mask, input.to(wide), 0)
    xhat = (x - mean.to(wide).reshape(shape)) * torch.rsqrt(var.to(wide).reshape(shape) + eps)
    return finish_channels(xhat, weight, bias, residual, activation, mask, input.dtype)


def normalize(
    input: Tensor,
    moments: Moments,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """``activation((input - mean) / sqrt(var + eps) * weight + bias + residual)``, zero under the mask.

    `moments`, `weight` and `bias` broadcast against the input; mask: bool, broadcasts too, True = a real value.
    """
    xhat = standardize(input.to(accumulator_dtype(input)), moments, eps, mask)
    return finish(xhat, weight, bias, residual, activation, mask, input.dtype)


def finish(
    xhat: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation,
    mask: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """What follows the normalization: scale, shift, residual, activation, mask, and one rounding to `dtype`."""
    y = xhat
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    if residual is not None:
        y = y + (residual if mask is None else torch.where(mask, residual, 0))
    y = activation(y.to(dtype)) if activation.code == AFTER else activation(y).to(dtype)
    return y if mask is None else torch.where(mask, y, 0)


def finish_channels(
    xhat: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: Activation,
    mask: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`finish` with parameters of channels. xhat: (N, C, *); weight, bias: (C,)."""
    shape = channel_shape(xhat.dim(), xhat.shape[1])
    scale, shift = (None if p is None else p.reshape(shape) for p in (weight, bias))
    return finish(xhat, scale, shift, residual, activation, mask, dtype)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """Group norm. input: (N, C, *); groups of C / num_groups channels; weight, bias: (C,); mask: (N, 1, *)."""
    n, c, *positions = input.shape
    wide = input.to(accumulator_dtype(input)).reshape(n, num_groups, c // num_groups, *positions)
    inner = None if mask is None else mask.unsqueeze(1)
    moments = Moments.of(wide, tuple(range(2, wide.dim())), inner)
    xhat = standardize(wide, moments, eps, inner).reshape(input.shape)
    return finish_channels(xhat, weight, bias, residual, activation, mask, input.dtype)


def standardize(wide: Tensor, moments: Moments, eps: float, mask: Tensor | None) -> Tensor:
    """``(x - mean) / sqrt(var + eps)``; a set without values has the variance 0, not NaN (0 / 0)."""
    beside = moments.beside(wide)
    if mask is not None:
        # select before arithmetic: NaN and Inf under the mask reach neither outputs nor gradients
        wide = torch.where(mask, wide, beside.mean.detach())
    count = beside.count
    values: int | Tensor = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
    return (wide - beside.mean) * torch.rsqrt(beside.m2 / values + eps)
