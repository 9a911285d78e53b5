"""How a function that launches kernels becomes an operator: what every norm's operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ..._shapes import in_order, is_channels_last
from ..._torch import triton_op
from . import INTERPRETS


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """An operator that compilers see into. Interpreted kernels are no part of a graph: there it is opaque."""

    def define(function: Callable[..., Any]) -> Any:
        if not INTERPRETS:
            return triton_op(name, function, mutates_args=())
        opaque = custom_op(name, function, mutates_args=())
        opaque.register_fake(function)
        return opaque

    return define


def none(input: Tensor) -> Tensor:
    """An operator cannot return None; an empty tensor stands for it."""
    return input.new_empty((0,), dtype=torch.uint8)


def marked(bits: Tensor | None, input: Tensor) -> Tensor:
    """Bits as an operator gives them out, or none: a vector where they lie row-major, one row where channels are last.

    Hooks on saved tensors may hand the backward its input in another memory format than the bits were made in, and to
    read a mark from a device's memory would be to wait for it.
    """
    if bits is None:
        return none(input)
    return bits[None] if is_channels_last(input) else bits


def unmarked(input: Tensor, bits: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(the input in the order of memory of marked bits, the bits)."""
    if bits is None:
        return input, None
    return in_order(input, bits.dim() == 2), bits.reshape(-1)


def vector(gradient: Tensor | None, input: Tensor) -> Tensor:
    """A parameter's gradient, or none."""
    return none(input) if gradient is None else gradient


def laid(gradient: Tensor | None, input: Tensor) -> Tensor:
    """A gradient as torch.empty_like(input) lies, or none."""
    return none(input) if gradient is None else like(gradient, input)


def like(tensor: Tensor, input: Tensor) -> Tensor:
    """The tensor in the strides that torch.empty_like(input) has."""
    wanted = torch.empty_like(input)
    return tensor if tensor.stride() == wanted.stride() else wanted.copy_(tensor)
