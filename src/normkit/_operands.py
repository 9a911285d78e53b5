"""What travels between a norm, its kernels and autograd: tensors by name, and nothing else. A leaf."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor

Maybe: TypeAlias = "Tensor | None"
Modulate: TypeAlias = "tuple[Tensor | None, Tensor | None] | None"  # (scale, shift) of one call; None: 1 and 0


class Operands(NamedTuple):
    """The tensors that a norm works on.

    input: (N, C, *), or (*, D) for norms of rows. weight, bias: (C,), or the normalized shape. residual: as the input.
    mask: bool, of the input's rank and broadcastable to it, True = a real value. scale, shift: the modulation, of the
    input's rank and broadcastable to it; kernels take none.
    """

    input: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    mask: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None


def verified(operands: Operands, input: Tensor, residual: Maybe, mask: Maybe) -> Operands:
    """The operands with these in their places. Spelled out: Dynamo of torch 2.4 does not trace `_replace`."""
    return Operands(input, operands.weight, operands.bias, residual, mask, operands.scale, operands.shift)


def under(operands: Operands, weight: Maybe, bias: Maybe) -> Operands:
    """The operands under another weight and bias; likewise."""
    input, _, _, residual, mask, scale, shift = operands
    return Operands(input, weight, bias, residual, mask, scale, shift)


def in_dtype_of(operand: Maybe, gradient: Maybe, needed: bool) -> Maybe:
    """An operand's gradient in its dtype; None where it is not needed, or where there is no such operand."""
    return gradient.to(operand.dtype) if needed and gradient is not None and operand is not None else None


def is_modulated(operands: Operands) -> bool:
    """Whether a scale or a shift of this call's own follows the norm's weight and bias."""
    return operands.scale is not None or operands.shift is not None


class Saved(NamedTuple):
    """What a kernel's forward leaves for its backward beside the operands.

    stats: float64 (3, sets): mean, biased variance, rstd of each set of values; some norms add rows of their own.
        Triton's kernels: float32 (5, sets), then the rest of the mean, and how many values there are
        (`moments.doubles` reads both).
    bits: uint8, one bit per element, where a piecewise linear activation behind a residual has slope 1; or None.
    """

    stats: Tensor
    bits: Tensor | None = None


class Needs(NamedTuple):
    """Whose gradient is wanted."""

    input: bool
    weight: bool
    bias: bool
    residual: bool


class Gradients(NamedTuple):
    """With respect to each operand, in its dtype; None where not needed."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None = None
    residual: Tensor | None = None
