"""Norms whose statistics lie within one sample, as differentiable torch operations: instance, layer and RMS norm.

The rules are those of :mod:`normkit.kernels.composed`: widen once, compute in the accumulator's dtype, round once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._activation import NONE, Activation
from .._shapes import channel_shape
from ..moments import Moments, accumulator_dtype
from .composed import finish, standardize


def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Instance norm and its moments (N, C). input: (N, C, *); weight, bias: (C,); mask: (N, 1, *)."""
    wide = input.to(accumulator_dtype(input))
    moments = Moments.of(wide, tuple(range(2, input.dim())), mask)
    xhat = standardize(wide, moments, eps, mask)
    shape = channel_shape(input.dim(), input.shape[1])
    weight, bias = (None if p is None else p.reshape(shape) for p in (weight, bias))
    return finish(xhat, weight, bias, residual, activation, mask, input.dtype), moments


def layer_norm(
    input: Tensor,
    axes: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """Layer norm over the last `axes` axes; weight and bias have their shape; mask: the leading shape, then ones."""
    wide = _select(input.to(accumulator_dtype(input)), mask)
    moments = Moments.of(wide, tuple(range(input.dim() - axes, input.dim())))
    xhat = standardize(wide, moments, eps, None)
    return finish(xhat, weight, bias, None, activation, mask, input.dtype)


def rms_norm(
    input: Tensor,
    axes: int,
    weight: Tensor | None,
    eps: float,
    *,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """RMS norm over the last `axes` axes; weight has their shape; mask: the leading shape, then ones."""
    wide = _select(input.to(accumulator_dtype(input)), mask)
    mean_square = wide.square().mean(tuple(range(input.dim() - axes, input.dim())), keepdim=True)
    xhat = wide * torch.rsqrt(mean_square + eps)
    return finish(xhat, weight, None, None, activation, mask, input.dtype)


def _select(x: Tensor, mask: Tensor | None) -> Tensor:
    # before arithmetic: NaN and Inf under the mask reach neither outputs nor gradients
    return x if mask is None else torch.where(mask, x, 0)
