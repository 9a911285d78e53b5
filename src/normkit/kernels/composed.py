"""Norms as differentiable torch operations, in float64; in float32 where a device is slow at that or has none.

This path serves what a fused kernel cannot: derivatives of every order, forward mode, torch.func transforms, tensor
subclasses, torch.compile, masks. It widens the input once, computes everything in the accumulator's dtype and rounds
once at the end, so it meets the numeric contract by construction: autograd differentiates the widened operations.

Rule: what a mask hides is selected away before anything is multiplied, so that NaN and Inf under it reach neither
outputs nor gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _operands
from .._activation import AFTER, Activation
from .._operands import Maybe, Operands, is_modulated
from .._precision import accumulator_dtype
from .._shapes import batch_dims, channel_shape
from ..moments import Moments, spread, total_over

FUSED_ACTIVATIONS = range(AFTER + 1, 1 << 8)  # every code: an activation without one may have parameters of its own
FUSES_RESIDUAL = True


def batch_norm(operands: Operands, activation: Activation, eps: float) -> tuple[Tensor, Moments]:
    """Batch norm under the batch's own statistics. input: (N, C, *); weight, bias: (C,); mask: (N, 1, *)."""
    wide = widened(operands)  # once: two casts would round two halves of the gradient
    moments = Moments.of(wide, batch_dims(wide.dim()), operands.mask)
    return by_moments(wide, moments, operands, activation, eps), moments


def batch_norm_inference(operands: Operands, mean: Tensor, var: Tensor, activation: Activation, eps: float) -> Tensor:
    """Batch norm under given statistics. input: (N, C, *); mean, var, weight, bias: (C,); mask: (N, 1, *)."""
    x = cleared(widened(operands), operands.mask)
    shape = channel_shape(x.dim(), x.shape[1])
    xhat = (x - mean.to(x.dtype).reshape(shape)) * torch.rsqrt(var.to(x.dtype).reshape(shape) + eps)
    # a second time: statistics that are not finite make NaN of zeros, which the weight's gradient would be of
    return finish_channels(cleared(xhat, operands.mask), operands, activation)


def group_norm(operands: Operands, num_groups: int, activation: Activation, eps: float) -> Tensor:
    """Group norm. input: (N, C, *); groups of C / num_groups channels; weight, bias: (C,); mask: (N, 1, *)."""
    n, c, *positions = operands.input.shape
    wide = widened(operands).reshape(n, num_groups, c // num_groups, *positions)
    mask = None if operands.mask is None else operands.mask.unsqueeze(1)
    moments = Moments.of(wide, tuple(range(2, wide.dim())), mask)
    xhat = standardize(wide, moments, eps, mask).reshape(operands.input.shape)
    return finish_channels(xhat, operands, activation)


def instance_norm(operands: Operands, activation: Activation, eps: float) -> tuple[Tensor, Moments]:
    """Instance norm and its moments (N, C). input: (N, C, *); weight, bias: (C,); mask: (N, 1, *)."""
    wide = widened(operands)
    moments = Moments.of(wide, tuple(range(2, wide.dim())), operands.mask)
    return by_moments(wide, moments, operands, activation, eps), moments


def layer_norm(operands: Operands, axes: int, activation: Activation, eps: float) -> Tensor:
    """Layer norm over the last `axes` axes; weight and bias have their shape; mask: the leading shape, then ones."""
    wide = cleared(widened(operands), operands.mask)
    moments = Moments.of(wide, tuple(range(wide.dim() - axes, wide.dim()))).beside(wide)
    xhat = moments.deviation(wide) * spread(_rstd(moments.var(correction=0), eps, operands.mask), wide)
    return finish(xhat, operands, activation)


def rms_norm(operands: Operands, axes: int, activation: Activation, eps: float) -> Tensor:
    """RMS norm over the last `axes` axes; weight has their shape; mask: the leading shape, then ones."""
    wide = cleared(widened(operands), operands.mask)
    dims = tuple(range(wide.dim() - axes, wide.dim()))
    mean_square = total_over(wide.square(), dims) / math.prod(wide.shape[wide.dim() - axes :])
    return finish(wide * spread(_rstd(mean_square, eps, operands.mask), wide), operands, activation)


def normalize(operands: Operands, moments: Moments, activation: Activation, eps: float) -> Tensor:
    """``activation((input - mean) / sqrt(var + eps) * weight + bias + residual)``, zero under the mask.

    `moments`, `weight`, `bias` and the mask broadcast against the input.
    """
    return finish(standardize(widened(operands), moments, eps, operands.mask), operands, activation)


def by_moments(wide: Tensor, moments: Moments, operands: Operands, activation: Activation, eps: float) -> Tensor:
    """A norm of channels under these moments. wide: the input widened, the very tensor that the moments are of."""
    return finish_channels(standardize(wide, moments, eps, operands.mask), operands, activation)


def widened(operands: Operands) -> Tensor:
    """The input in the accumulator's dtype."""
    return operands.input.to(accumulator_dtype(operands.input))


def cleared(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x`, in its memory format, with zeros under the mask.

    `torch.where` orders its output as its first operand in memory, and masked_fill always row-major; a mask that is
    contiguous leaves the axis that it is broadcast along, the channels', where `x` has it.
    """
    return x if mask is None else torch.where(mask.contiguous(), x, 0)


def standardize(wide: Tensor, moments: Moments, eps: float, mask: Tensor | None) -> Tensor:
    """``(x - mean) / sqrt(var + eps)``; a set without values has the variance 0, not NaN (0 / 0)."""
    beside = moments.beside(wide)
    count = beside.count
    values: int | Tensor = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
    real = None if mask is None else torch.as_tensor(count, device=wide.device) > 0
    return cleared(beside.deviation(wide), mask) * spread(_rstd(beside.m2 / values, eps, real), wide)


def _rstd(var: Tensor, eps: float, real: Tensor | None) -> Tensor:
    """``1 / sqrt(var + eps)``; real: which sets have real values, None = all. The others have the variance 1.

    Their deviations are zeros, which the infinity of eps = 0 would make NaN of, and NaN passes every zero gradient.
    """
    return torch.rsqrt((var if real is None else torch.where(real, var, 1)) + eps)


def finish_channels(xhat: Tensor, operands: Operands, activation: Activation) -> Tensor:
    """`finish` with parameters of channels. xhat: (N, C, *); weight, bias: (C,), or (N, C)."""
    n, c, *positions = xhat.shape
    weight, bias = (
        None if p is None else p.reshape(n if p.shape == (n, c) else 1, c, *[1] * len(positions))
        for p in (operands.weight, operands.bias)
    )
    return finish(xhat, _operands.under(operands, weight, bias), activation)


def finish(xhat: Tensor, operands: Operands, activation: Activation) -> Tensor:
    """What follows the standardization: weight and bias, modulation, residual, activation, mask, one rounding to the
    input's dtype."""
    input, weight, bias, residual, mask, *_ = operands
    y = xhat
    if weight is not None:
        y = y * spread(weight, xhat)
    if bias is not None:
        y = y + spread(bias, xhat)
    y = modulated(y, operands)
    if residual is not None:
        y = y + cleared(residual, mask)
    apply = activation.function
    y = apply(y.to(input.dtype)) if activation.code == AFTER else apply(y).to(input.dtype)
    return cleared(y, mask)


def bare(operands: Operands) -> Operands:
    """The operands of a norm that `add_and_activate` follows.

    A modulated norm of 16-bit values is computed in float32: its own rounding, and that of scale * dy on the way back,
    would stand beside the one rounding of the result.
    """
    input, weight, bias, _, mask, *_ = operands
    if is_modulated(operands) and input.dtype in (torch.float16, torch.bfloat16):
        weight, bias = (None if p is None else p.float() for p in (weight, bias))
        input = input.float()
    return Operands(input, weight, bias, None, mask)


def add_and_activate(y: Tensor, operands: Operands, activation: Activation) -> Tensor:
    """Modulation, residual, activation and mask as operations of their own, after a norm that lacks them."""
    if is_modulated(operands):
        y = _modulated_at_once(y, operands)
    if operands.residual is not None:
        y = y + cleared(operands.residual, operands.mask).to(y.dtype)
    if is_modulated(operands):  # in float32 so far where the input has 16 bits
        dtype = operands.input.dtype
        y = activation.function(y.to(dtype)) if activation.code == AFTER else activation.function(y).to(dtype)
        return cleared(y, operands.mask)
    return cleared(activation.function(y), operands.mask)


def modulated(y: Tensor, operands: Operands) -> Tensor:
    """``scale * y + shift`` in the accumulator's dtype, that of `y`."""
    return _scaled_and_shifted(y, *_modulation(operands, y))


def _modulated_at_once(y: Tensor, operands: Operands) -> Tensor:
    """The same of a norm's output: in one pass over memory, in the dtype and the memory format of `y`."""
    scale, shift = _modulation(operands, y)
    if scale is not None and shift is not None:
        found = torch.addcmul(shift, y, scale)  # whose order in memory may be the shift's
    else:
        found = _scaled_and_shifted(y, scale, shift)
    found = found.to(y.dtype)
    return found if found.stride() == y.stride() else torch.empty_like(y).copy_(found)


def _scaled_and_shifted(y: Tensor, scale: Maybe, shift: Maybe) -> Tensor:
    y = y if scale is None else y * scale
    return y if shift is None else y + shift


def _modulation(operands: Operands, y: Tensor) -> tuple[Maybe, Maybe]:
    """Scale and shift beside y, with what the mask hides of them selected away: in the dtype of y, in which the
    selection's gradient is summed."""

    def beside(t: Maybe) -> Maybe:
        if t is None:
            return None
        t = spread(t, y)
        return t if operands.mask is None else torch.where(operands.mask, t.to(y.dtype), 0)

    return beside(operands.scale), beside(operands.shift)
