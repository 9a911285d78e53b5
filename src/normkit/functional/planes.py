"""A modulation of one number per sample and channel, as the weight and bias of a norm.

A channel of a sample is a plane of memory, and what a kernel reads per channel of (1, N * C, *) it reads per plane of
(N, C, *). So a group norm of N samples, modulated, is one of N * C channels of one sample in N * G groups, whose weight
and bias are the modulation: the kernels fuse it forward and backward as they are.
"""

from __future__ import annotations

import torch

from .._activation import AFTER, Activation
from .._operands import Maybe, Operands


def why_not(operands: Operands, activation: Activation) -> str | None:
    """The first condition that keeps a modulated call from this form, or None."""
    input = operands.input
    if any(t is not None and any(size != 1 for size in t.shape[2:]) for t in (operands.scale, operands.shift)):
        return "it tells positions apart"
    if operands.mask is not None:
        return "a mask is given"
    if activation.code == AFTER:
        return "the activation is a module of its own, which may tell channels apart"
    return None if input.is_contiguous() and input.numel() else "the input is not row-major"


def of(operands: Operands) -> Operands:
    """The operands with input and residual (1, N * C, *), weight and bias (N * C,), and no modulation."""
    return seen(with_affine(operands))


def seen(operands: Operands) -> Operands:
    """The operands with input and residual as (1, N * C, *); weight, bias: (N * C,) already."""
    input, weight, bias, residual = operands[:4]
    n, c, *positions = input.shape
    sizes = [1, n * c, *positions]
    return Operands(input.reshape(sizes), weight, bias, None if residual is None else residual.reshape(sizes))


def with_affine(operands: Operands) -> Operands:
    """The operands with weight and bias (N * C,) in the modulation's place."""
    n, c = operands.input.shape[:2]
    weight, bias = (None if p is None else p.expand(n, c).reshape(n * c) for p in _affine(operands))
    return Operands(operands.input, weight, bias, operands.residual)


def _affine(operands: Operands) -> tuple[Maybe, Maybe]:
    """Weight and bias, broadcast from (N, C)."""
    kind = torch.promote_types(operands.input.dtype, torch.float32)
    scale, shift = (None if t is None else t.reshape(t.shape[:2]).to(kind) for t in (operands.scale, operands.shift))
    weight, bias = (None if p is None else p.to(kind) for p in (operands.weight, operands.bias))
    return combined(weight, bias, scale, shift)


def combined(weight: Maybe, bias: Maybe, scale: Maybe, shift: Maybe) -> tuple[Maybe, Maybe]:
    """scale * weight and scale * bias + shift; None: 1 and 0."""
    moved = bias if bias is None or scale is None else scale * bias
    if moved is not None and shift is not None:
        shift = moved + shift
    if scale is not None and weight is not None:
        scale = scale * weight
    return weight if scale is None else scale, moved if shift is None else shift
