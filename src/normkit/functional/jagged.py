"""Nested tensors of the layout torch.jagged: sequences of different lengths without padding.

Layer and RMS norm normalize each position for itself, so the values of all sequences, one behind the other as they lie
in memory, go through the kernels as rows, and the output has the offsets of the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._operands import Operands
from .._torch import ragged_axis
from .spec import NormSpec


def serves(norm: NormSpec, operands: Operands) -> bool:
    """Whether the input is jagged along an axis that the norm does not normalize.

    Raises ValueError for a mask: nothing of a jagged tensor is padding.
    """
    input, mask = operands.input, operands.mask
    if input.layout is not torch.jagged:
        return False
    if mask is not None:
        raise ValueError("a jagged nested tensor holds real values alone: expected mask=None")
    shape = getattr(norm, "normalized_shape", None)
    return shape is not None and ragged_axis(input) < input.dim() - len(shape)


def values(input: Tensor) -> Tensor:
    """All sequences, one behind the other: (positions, *, D)."""
    return input.values()


def rebuilt(y: Tensor, input: Any) -> Tensor:
    """The same as a jagged tensor with the input's offsets, so that the two can be added. y: as `values` of it."""
    axis = ragged_axis(input)
    place = {} if axis == 1 else {"jagged_dim": axis}
    return torch.nested.nested_tensor_from_jagged(y, input.offsets(), input.lengths(), **place)
