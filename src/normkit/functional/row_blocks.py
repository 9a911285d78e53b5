"""What layer and RMS norm share: rows, and a modulation that is the same in all of a sample's rows.

The rows of a sample, (L, D) of (N, L, D), are a block of consecutive rows in memory, and the native kernels take a
weight and a bias for each block.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from .._activation import NONE
from .._operands import Maybe, Modulate, Operands
from ._autograd import apply_added, apply_apart
from .planes import combined, quick_affine
from .spec import Elements, NormSpec


class RowNormSpec(NormSpec):
    """One norm of rows, the last axes; an activation is an operation of its own, and there is no residual."""

    __slots__ = ()

    normalized_shape: tuple[int, ...]

    rows: ClassVar[int]  # which of the core's norms of rows it is
    fuses: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """D: how many values a position has."""
        return math.prod(self.normalized_shape)

    @abstractmethod
    def eps_of(self, input: Tensor) -> float:
        """eps for this input."""

    def added_in_core(
        self, input: Tensor, residual: Tensor, weight: Maybe, bias: Maybe
    ) -> tuple[Tensor, Tensor] | None:
        """The same behind an addition: (output, sum)."""
        if len(self.normalized_shape) != 1:
            return None
        width, eps = self.normalized_shape[0], self.eps_of(input)
        made = apply_added(input, residual, weight, bias, self, self.rows, width, eps)
        return made if made is None else (self.activation.function(made[0]), made[1])

    def modulated_in_core(
        self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, modulate: Modulate
    ) -> Maybe:
        """By rows, a weight and a bias for each block of them."""
        if len(self.normalized_shape) != 1:
            return None
        width = self.normalized_shape[0]
        found = quick(input, weight, bias, modulate, width)
        if found is None:
            return None
        y = apply_apart(input, *found, None, self, self.rows, width, self.eps_of(input), NONE)
        return y if y is None else self.activation.function(y)

    def elements(self, input: Tensor) -> Elements | None:
        """By rows."""
        return Elements(self.rows, self.size, self.eps_of(input))

    def normalized_axes(self) -> int:
        """As many as `normalized_shape` has."""
        return len(self.normalized_shape)

    def why_not_native(self, operands: Operands) -> str | None:
        """Under a mask rows are zeros, which without eps have no reciprocal deviation."""
        return None if operands.mask is None or self.eps_of(operands.input) > 0 else "a mask is given, and eps is 0"

    def why_not_operator(self, kernel: ModuleType, operands: Operands) -> str | None:
        """Without a mask it is one."""
        return None if operands.mask is None else "a mask is given"

    def why_not_affine(self, operands: Operands) -> str | None:
        """A row's statistics are its own."""
        return why_not(operands, self.normalized_axes())

    def as_affine(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """Each block of rows with a weight and a bias of its own."""
        return self, as_blocks(operands, self.normalized_axes())


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


def as_blocks(operands: Operands, axes: int) -> Operands:
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
    if input.dim() != 3 or input.shape[2] != width or not input.is_contiguous():
        return None
    n, length = input.shape[:2]
    if length == 1:
        return None
    return quick_affine(input, weight, bias, modulate, (width,), ((n, 1, width), (n, width)))


def _sizes(operands: Operands) -> torch.Size:
    """Of scale and shift together."""
    return torch.broadcast_shapes(*(t.shape for t in (operands.scale, operands.shift) if t is not None))
