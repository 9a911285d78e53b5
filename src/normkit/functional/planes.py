"""A modulation of one number per sample and channel, as the weight and bias of a norm.

Row-major, a channel of a sample is a plane of memory, and what a kernel reads per channel of (1, N * C, *) it reads per
plane of (N, C, *). So a group norm of N samples, modulated, is one of N * C channels of one sample in N * G groups,
whose weight and bias are the modulation: the kernels fuse it forward and backward as they are. Channels last, the core
takes a weight and a bias (N, C), and calls the kernels sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._activation import AFTER, Activation
from .._operands import Maybe, Modulate, Operands
from .._shapes import is_channels_last
from .._torch import reshaped_as_no_view
from ..kernels import native
from ._autograd import GROUPS, apply_apart
from .choose import is_plain
from .spec import NormSpec, strides_may_change

_WIDE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}
# A tensor whose storage was freed has its offset as address, and torch's operations would read there (`_storage.py`).
_DOUBTFUL = 1 << 32


def why_not(operands: Operands, activation: Activation) -> str | None:
    """The first condition that keeps a modulated call from this form, or None."""
    input = operands.input
    if any(t is not None and any(size != 1 for size in t.shape[2:]) for t in (operands.scale, operands.shift)):
        return "it tells positions apart"
    if operands.mask is not None:
        return "a mask is given"
    if activation.code == AFTER:
        return "the activation is a module of its own, which may tell channels apart"
    if not input.numel():
        return "the input is empty"
    if input.is_contiguous() or is_channels_last(input) or strides_may_change():
        return None
    return "the input is neither row-major nor channels last"


def as_planes(operands: Operands) -> Operands:
    """The operands as kernels take them, with weight and bias in the modulation's place."""
    return for_kernels(with_affine(operands), is_flat(operands.input))


def for_kernels(operands: Operands, flat: bool) -> Operands:
    """As kernels take weight and bias (N * C,). flat: input and residual as (1, N * C, *); else weight, bias (N, C)."""
    input, weight, bias, residual, *_ = operands
    n, c, *positions = input.shape
    if not flat:
        weight, bias = (None if p is None else p.reshape(n, c) for p in (weight, bias))
        return Operands(input, weight, bias, residual)
    sizes = [1, n * c, *positions]
    return Operands(input.reshape(sizes), weight, bias, None if residual is None else residual.reshape(sizes))


def is_flat(input: Tensor) -> bool:
    """Whether the channels of all samples are taken for those of one."""
    return input.is_contiguous() and not strides_may_change()


def samples(operands: Operands) -> int:
    """How many samples are one in the form of `for_kernels`."""
    return operands.input.shape[0] if is_flat(operands.input) else 1


def quick(input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, modulate: Modulate) -> Operands | None:
    """The same for a common eager call that is not verified; None for any other."""
    if type(input) is not Tensor:
        return None
    sizes = tuple(input.shape)
    if len(sizes) < 2 or (residual is not None and residual.shape != sizes):
        return None
    if not input.is_contiguous() and not is_channels_last(input):
        return None
    n, c, *positions = sizes
    found = quick_affine(input, weight, bias, modulate, (c,), ((n, c), (n, c, *[1] * len(positions))))
    if found is None:
        return None
    if not is_flat(input):
        return Operands(input, *found, residual)
    if residual is not None and not residual.is_contiguous():
        return None
    scale, shift = found
    flat = (1, n * c, *positions)
    operands = Operands(input.view(flat), scale.reshape(-1), shift.reshape(-1))
    return operands if residual is None else operands._replace(residual=residual.view(flat))


def groups_in_core(
    make: Callable[[int], NormSpec], groups: int, eps: float, input: Tensor, weight: Maybe, bias: Maybe,
    residual: Maybe, modulate: Modulate,
) -> Maybe:  # fmt: skip
    """A group norm of the common eager call, modulated, by one call of the core; None for any other.

    make: the norm of so many groups.
    """
    found = quick(input, weight, bias, residual, modulate)
    if found is None:
        return None
    if found.input is input:
        norm = make(groups)
        if norm.activation.code not in native.FUSED_ACTIVATIONS:
            return None
        return apply_apart(*found[:4], norm, GROUPS, groups, eps, norm.activation)
    y = make(input.shape[0] * groups).in_core(*found[:4])
    return y if y is None else reshaped_as_no_view(y, input.shape)


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
    """scale * weight and scale * bias + shift, with the roundings of `quick_affine`; None: 1 and 0."""
    if bias is None:
        moved = shift
    elif scale is None or shift is None:
        moved = bias if scale is None else scale * bias
        moved = moved if shift is None else moved + shift
    else:
        moved = torch.addcmul(shift, scale, bias)
    if scale is None or weight is None:
        return weight if scale is None else scale, moved
    return scale * weight, moved


def quick_affine(
    input: Tensor, weight: Maybe, bias: Maybe, modulate: Modulate, own: Sequence[int], forms: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor] | None:
    """`combined` of a common eager call by as few operations as will do, in the first of `forms`, which are the shapes
    that scale and shift may have; None for any other call, which the road looks at closely and says what is wrong.

    own: the shape of weight and bias, to which that broadcasts.
    """
    if type(modulate) is not tuple or len(modulate) != 2 or type(input) is not Tensor:
        return None
    dtype, wide = input.dtype, _WIDE.get(input.dtype)
    if wide is None or not input.is_cpu:
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
