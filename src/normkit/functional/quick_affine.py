"""The common eager call with a modulation, to weight and bias by as few operations as will do.

Anything out of the common is None here, and looked at closely by the road: what is wrong with it is said there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._operands import Maybe, Modulate
from .choose import is_plain

_WIDE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}
# A tensor whose storage was freed has its offset as address, and torch's operations would read there (`_storage.py`).
_DOUBTFUL = 1 << 32


def affine(
    input: Tensor, weight: Maybe, bias: Maybe, modulate: Modulate, own: Sequence[int], forms: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor] | None:
    """(scale * weight, scale * bias + shift), of the first of `forms`, the shapes that scale and shift may have.

    own: the shape of weight and bias, to which that broadcasts.
    """
    if type(modulate) is not tuple or len(modulate) != 2 or type(input) is not Tensor:
        return None
    dtype, wide = input.dtype, _WIDE.get(input.dtype)
    if wide is None or not input.is_contiguous() or not input.is_cpu:
        return None
    for tensor in modulate:
        if type(tensor) is not Tensor or tensor.dtype not in _WIDE or tuple(tensor.shape) not in forms:
            return None
        if not tensor.is_cpu or tensor.layout is not torch.strided or tensor.data_ptr() < _DOUBTFUL:
            return None
    for parameter in (weight, bias):
        if parameter is None:
            continue
        if not is_plain(parameter) or parameter.shape != own or parameter.dtype not in (dtype, wide):
            return None
        if not parameter.is_cpu or parameter.layout is not torch.strided or parameter.data_ptr() < _DOUBTFUL:
            return None
    scale, shift = (t.to(wide) for t in modulate if t is not None)
    if scale.shape != forms[0]:
        scale = scale.reshape(forms[0])
    if shift.shape != forms[0]:
        shift = shift.reshape(forms[0])
    if bias is not None:
        shift = torch.addcmul(shift, scale, bias.to(wide))
    return (scale if weight is None else scale * weight.to(wide)), shift
