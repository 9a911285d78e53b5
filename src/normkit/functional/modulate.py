"""`modulate=(scale, shift)`: what conditional norms put after a norm, y = scale * norm(x) + shift.

Rule: a modulation has as many axes as the input, or one of the short forms below, so that no vector is laid on the
wrong axis by chance: (N, C) for channels, (N, D) and (D,) for rows.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._operands import Maybe, Operands
from .._torch import tracing_state


def pair(modulate: Any) -> tuple[Maybe, Maybe]:
    """(scale, shift) of a call, each a real floating-point tensor or None (1, 0).

    Raises:
        TypeError: anything else.
    """
    if modulate is None:
        return None, None
    if not isinstance(modulate, (tuple, list)) or len(modulate) != 2:
        count = f" of {len(modulate)}" if isinstance(modulate, (tuple, list)) else ""
        raise TypeError(f"modulate must be a pair of tensors (scale, shift), got a {type(modulate).__name__}{count}")
    scale, shift = modulate
    for name, tensor in (("scale", scale), ("shift", shift)):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            what = type(tensor).__name__
            raise TypeError(f"modulate: {name} must be a floating-point tensor, or None, got {what}")
        if not tensor.is_floating_point():
            raise TypeError(f"modulate: {name} must be a floating-point tensor, got {tensor.dtype}: use {name}.float()")
    return scale, shift


def lay(operands: Operands, axes: int = 0) -> Operands:
    """The operands of a call, verified, with scale and shift of the input's rank.

    axes: how many last axes the norm covers, for norms of rows; 0: channels are at axis 1.

    Raises:
        ValueError: a shape that does not fit.
        NotImplementedError: a nested input.
    """
    input, scale, shift = operands.input, operands.scale, operands.shift
    if scale is None and shift is None:
        return operands
    if input.is_nested:
        raise NotImplementedError("modulate: a nested input has no shape to lay scale and shift on; pad it")
    laid = lay_one("scale", scale, input, axes), lay_one("shift", shift, input, axes)
    input, weight, bias, residual, mask, *_ = operands
    return Operands(input, weight, bias, residual, mask, *laid)


def lay_one(name: str, tensor: Maybe, input: Tensor, axes: int) -> Maybe:
    """Scale or shift with the input's rank."""
    if tensor is None:
        return None
    rank, given, shape = input.dim(), tensor.dim(), list(tensor.shape)
    if given in (0, rank):
        sizes = shape or [1] * rank
    elif axes == 0 and given == 2 <= rank:
        sizes = [*shape, *[1] * (rank - 2)]
    elif axes and given == axes + 1 and given < rank:
        sizes = [shape[0], *[1] * (rank - given), *shape[1:]]
    elif axes and given == axes and given < rank:
        sizes = [*[1] * (rank - given), *shape]
    else:
        sizes = []
    # a trace's sizes are tensors, and to compare them warns
    if not sizes or (tracing_state() is None and any(a not in (1, b) for a, b in zip(sizes, input.shape, strict=True))):
        raise ValueError(_text(name, tensor, input, axes))
    return tensor if given == rank else tensor.reshape(sizes)


def _text(name: str, tensor: Tensor, input: Tensor, axes: int) -> str:
    sizes, ones = tuple(input.shape), [1] * (input.dim() - 1)
    if axes == 0:
        forms = f"{sizes[:2]} (per sample and channel), {(*sizes[:1], *ones)} (per sample)"
    else:
        vector = sizes[input.dim() - axes :]
        forms = f"{(*sizes[:1], *vector)} (a vector per sample)" if input.dim() > axes else f"{vector}"
    return (
        f"modulate: {name} of shape {tuple(tensor.shape)} does not fit an input of shape {sizes}: expected {forms}, or "
        f"{input.dim()} axes that broadcast to the input"
    )
