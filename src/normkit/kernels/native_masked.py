"""Masked batch norm and norms of rows on the native kernels. Rows are normalized one by one: those under the mask are
zeros on the way in and out. Of batch norm:

Values under the mask are replaced, per channel, by one value that is real and so near the others. What the replaced
values add to the sums about it is nothing: the kernels' moments of all M values give those of the m real ones exactly,

    mean = f + M/m (mean_M - f)        var = M/m (var_M + (mean_M - f)^2) - (mean - f)^2        f: the value put in

A select before the kernels and one after them, in each direction; NaN and Inf under the mask reach nothing. A mean
is rounded to float64, and M/m multiplies what that loses: where few values are real, moments are of them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._activation import IDENTITY
from .._operands import Gradients, Operands
from .._shapes import values_per_channel

# M/m up to which the moments of all values give those of the real ones: 8 roundings of a mean, 1e-9 standard
# deviations at a mean of 1e6 of them. Above it what is gathered is an eighth of the input at most.
LARGEST_SHARE = 8


def count_values(operands: Operands) -> int | Tensor:
    """How many real values each channel has; a 0-dim tensor where a mask is on a device, which nobody waits for."""
    input, mask = operands.input, operands.mask
    if mask is None:
        return values_per_channel(input.shape)
    positions = input.numel() // max(1, input.shape[1])
    kept = mask.sum() * (positions // max(1, mask.numel()))
    return int(kept) if mask.is_cpu else kept


def fill(operands: Operands, training: bool) -> tuple[Operands, Tensor]:
    """The operands with every value under the mask replaced, without the mask; and what stands in the input's place.

    That is a real value of each channel beside the input, (C, 1, ...); 0 in evaluation and where none is real.
    """
    input, weight, bias, residual, mask = operands[:5]
    assert mask is not None
    if not input.is_contiguous() and not (input.dim() > 2 and input.movedim(1, -1).is_contiguous()):
        input = input.contiguous()  # bits lie as what they are made of, and the backward has to find the same order
    value = _real_value(input, mask) if training else torch.zeros((), dtype=input.dtype, device=input.device)
    residual = None if residual is None else zeroed(residual, mask)
    return Operands(select(mask, input, value), weight, bias, residual), value


def statistics(
    kernel: Callable[[Tensor], Tensor], operands: Operands, filled: Tensor, value: Tensor, count: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean and biased variance (C,) of the `count` real values, float64; zeros where there are none.

    kernel: gives the statistics (3, C) of all values; value: what stands in `filled` under the mask.
    """
    if count == 0:
        zeros = filled.new_zeros(filled.shape[1], dtype=torch.float64)
        return zeros, zeros.clone()
    share = filled.numel() / filled.shape[1] / count
    if share > LARGEST_SHARE:
        input, mask = operands.input, operands.mask
        assert mask is not None
        real = mask.expand(input.shape[0], 1, *input.shape[2:]).squeeze(1)
        mean, var, _ = kernel(input.movedim(1, -1)[real])
        return mean, var
    all_mean, all_var, _ = kernel(filled)
    value = value.flatten().double()
    distance = all_mean - value
    offset = share * distance
    var = share * (all_var + distance * distance) - offset * offset
    return value + offset, var.clamp(min=0)


def clear(gradients: tuple[Any, ...], mask: Tensor, activation: int, by_values: bool = True) -> Gradients:
    """The kernels' gradients with zeros under the mask. by_values: the statistics are those of the real values."""
    dx, dweight, dbias, dresidual = gradients
    if not by_values:  # where nothing is real, given statistics may be NaN, and zeros times a slope there
        for found in (dweight, dbias):
            if found is not None:
                found.masked_fill_(~mask.any(), 0)
    if dx is not None:
        dx.masked_fill_(~mask, 0)
    if dresidual is not None and activation != IDENTITY:
        dresidual.masked_fill_(~mask, 0)  # an open gate may have met a value that was put in
    return Gradients(dx, dweight, dbias, dresidual)


def zeroed(tensor: Tensor, mask: Tensor) -> Tensor:
    """The tensor with zeros under the mask, in its own strides."""
    return select(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))


def select(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """torch.where in the strides of `yes`."""
    return torch.where(mask, yes, no, out=torch.empty_like(yes))


def _real_value(input: Tensor, mask: Tensor) -> Tensor:
    """The values of the first real position, (C, 1, ...); 0 where there is none."""
    flat = int(mask.reshape(-1).to(torch.uint8).argmax())
    at: list[int] = []
    for size in reversed(mask.shape):
        flat, index = divmod(flat, size)
        at.insert(0, index)
    if not mask[tuple(at)]:
        return torch.zeros((), dtype=input.dtype, device=input.device)
    sample, positions = at[0], tuple(at[2:])
    return input[sample].movedim(0, -1)[positions].reshape(-1, *[1] * (input.dim() - 2))
