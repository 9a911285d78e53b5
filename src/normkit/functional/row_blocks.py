"""A modulation that is the same in all of a sample's rows, as the weight and bias of layer or RMS norm.

The rows of a sample, (L, D) of (N, L, D), are a block of consecutive rows in memory, and the native kernels take a
weight and a bias for each block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._operands import Modulate, Operands
from .planes import combined, quick_affine


def why_not(operands: Operands, axes: int) -> str | None:
    """The first condition that keeps a modulated call from this form, or None. axes: how many last ones are a row."""
    input = operands.input
    leading, given = input.shape[: input.dim() - axes], _sizes(operands)[: input.dim() - axes]
    blocks = 0
    while blocks < len(given) and given[blocks] == leading[blocks]:
        blocks += 1
    if any(size != 1 for size in given[blocks:]):
        return "its blocks of rows are not consecutive"
    if blocks == len(leading) and any(size != 1 for size in leading):
        return "it tells rows apart"
    if operands.mask is not None:
        return "a mask is given"
    return None if input.numel() else "the input is empty"


def of(operands: Operands, axes: int) -> Operands:
    """The operands with a weight and a bias of (blocks, ..., 1, row), and no modulation."""
    input, weight, bias, _, _, scale, shift = operands
    kind = torch.promote_types(input.dtype, torch.float32)
    sizes = [*_sizes(operands)[: input.dim() - axes], *input.shape[input.dim() - axes :]]

    def wide(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(kind)

    weight, bias = combined(wide(weight), wide(bias), wide(scale), wide(shift))
    weight, bias = (None if p is None else p.expand(sizes).contiguous() for p in (weight, bias))
    return Operands(input, weight, bias)


def quick(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, modulate: Modulate, width: int
) -> tuple[Tensor, Tensor] | None:
    """Weight and bias (N, 1, width) of a common eager call (N, L, width) that is not verified; None for any other."""
    if input.dim() != 3 or input.shape[2] != width:
        return None
    n, length = input.shape[:2]
    if length == 1:
        return None
    return quick_affine(input, weight, bias, modulate, (width,), ((n, 1, width), (n, width)))


def _sizes(operands: Operands) -> torch.Size:
    """Of scale and shift together."""
    return torch.broadcast_shapes(*(t.shape for t in operands[5:] if t is not None))
