"""The autograd of fused kernels.

A kernel's backward serves first derivatives. Where a backward is differentiated in turn, transformed, or given a
gradient that is no plain tensor, the composed operations are differentiated instead, so derivatives of every order are
right. Saved: the operands, the statistics, and for a residual either one bit per element (activations whose slope
depends on the sign alone) or the residual itself (smooth activations).

Rule: statistics go through autograd as their bytes, uint8. Hooks on saved tensors may compress floating-point values
(to bfloat16, say), and then inputs lose digits; statistics read as another type would be memory read wrongly. Bytes
come back whole from any dtype that a hook may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .._activation import IDENTITY, NONE, Activation
from .._operands import Gradients, Maybe, Needs, Operands, Saved
from .._shapes import in_order, is_channels_last
from .._torch import forward_level, peek_transform, saved_tensors_hooks_top
from ..kernels import composed, native
from ..moments import doubles
from . import _storage
from .running import Running
from .spec import NormSpec

BATCH, GROUPS, LAYER, RMS = range(4)  # which statistics a call of the core computes, as native/autograd.h numbers them

# Told of every output and of what made it (statistics as numbers and as the bytes that autograd keeps) while some
# thread is in normkit.recompute_outputs(); only `Fused` tells.
output_listener: Callable[[NormSpec, ModuleType, Tensor, Tensor, Tensor, Operands], None] | None = None

_is_grad_enabled = torch.is_grad_enabled


class Fused(torch.autograd.Function):
    """A kernel's two halves, called from Python: for every kernel and norm."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, norm, kernel = arguments
        operands = Operands(*tensors)
        y, saved = norm.forward(kernel, operands, True)
        assert saved is not None
        kept = operands.residual if saved.bits is None and norm.activation.code != IDENTITY else None
        stats = saved.stats.view(torch.uint8)
        bits, channels_last, packed = saved.bits, False, None
        if bits is not None:
            channels_last = is_channels_last(operands.input)
            if saved_tensors_hooks_top() is not None:
                from . import ordered_bits  # here: few calls are under hooks, all would load it

                packed = operands.input.shape
                bits = ordered_bits.pack(bits, packed, channels_last)
        ctx.save_for_backward(*operands._replace(residual=kept)[:5], stats, bits)
        ctx.norm, ctx.kernel, ctx.statistics = norm, kernel, saved.stats.dtype
        ctx.channels_last, ctx.packed = channels_last, packed
        if output_listener is not None:
            output_listener(norm, kernel, y, saved.stats, stats, operands)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        needs, (dy,) = Needs(*ctx.needs_input_grad[:4]), gradients
        operands, saved = unpacked(ctx.saved_tensors, dy, ctx.channels_last, ctx.statistics, ctx.packed)
        if takes_operations(dy):
            return (*composed_backward(ctx.norm, ctx.kernel, dy, operands, saved, needs), None, None, None)
        return (*ctx.norm.backward(ctx.kernel, dy, operands, saved, needs), None, None, None)


class InCore(torch.autograd.Function):
    """The same for calls that are ready, each half one call of the core: through `Fused` a small norm takes half as
    long again ((16, 8), forward and backward: 40 us against 52)."""

    forward = staticmethod(native.fused_forward)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (dy,) = gradients
        if not takes_operations(dy):
            return native.fused_backward(ctx, dy)
        needs, channels_last = Needs(*ctx.needs_input_grad[:4]), ctx.plan[5]
        operands, saved = unpacked(ctx.saved_tensors, dy, channels_last, native.STATISTICS)
        return (*composed_backward(ctx.norm, native, dy, operands, saved, needs), *(None,) * 8)


class Added(torch.autograd.Function):
    """The same for a norm of rows behind an addition: (norm(input + residual), the sum), of which the sum is saved.

    Either output may be without a gradient.
    """

    forward = staticmethod(native.fused_forward)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        dy, dsum = gradients
        if dy is None:
            return (dsum, None, None, dsum, *(None,) * 8)
        if not (takes_operations(dy) or (dsum is not None and takes_operations(dsum))):
            return native.added_backward(ctx, dy, dsum)
        of_input, of_weight, of_bias, of_residual = ctx.needs_input_grad[:4]
        operands, saved = unpacked(ctx.saved_tensors, dy, False, native.STATISTICS)
        needs = Needs(of_input or of_residual, of_weight, of_bias, False)
        found = composed_backward(ctx.norm, native, dy, operands, saved, needs)
        addend = found.input if found.input is None or dsum is None else found.input + dsum
        return (addend, found.weight, found.bias, addend, *(None,) * 8)


# Function.apply first asks whether a torch.func transform is active; no kernel is chosen under one.
_apply = super(torch.autograd.Function, Fused).apply
_apply_in_core = super(torch.autograd.Function, InCore).apply
_apply_added = super(torch.autograd.Function, Added).apply


def apply_kernel(norm: NormSpec, kernel: ModuleType, operands: Operands) -> Tensor:
    """The norm on a kernel, under autograd where a gradient is wanted."""
    if _is_grad_enabled() and _needs_graph(*operands[:4]):
        return _apply(*operands[:5], norm, kernel)
    return norm.forward(kernel, operands, False)[0]


def apply_in_core(  # flat: twelve arguments, those of the core's one call; to pack them would cost a microsecond
    input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, norm: NormSpec, running: Running | None, kind: int,
    size: int, training: bool, eps: float, code: int, param: float,
) -> Maybe:  # fmt: skip
    """The same by one call of the core, or None where it does not take these tensors as they are.

    size: the number of groups, or the width of the rows.
    """
    if residual is not None and _orders_bits(code):
        return None
    if _is_grad_enabled():
        if not native.ready(input, weight, bias, residual, running, kind, size, training):
            return None
        if _needs_graph(input, weight, bias, residual):
            return _apply_in_core(input, weight, bias, residual, norm, running, kind, size, training, eps, code, param)
    return native.fused_inference(input, weight, bias, residual, norm, running, kind, size, training, eps, code, param)


def apply_apart(  # flat, as `apply_in_core` is
    input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, norm: NormSpec, kind: int, size: int, eps: float,
    activation: Activation,
) -> Maybe:  # fmt: skip
    """With a weight and a bias, plain ones, for each sample (N, C) or block of rows (blocks, ..., size): as
    `apply_in_core`."""
    if residual is not None and _orders_bits(activation.code):
        return None
    if not native.ready(input, None, None, residual, None, kind, size, True):
        return None
    given = (input, weight, bias, residual, norm, None, kind, size, True, eps, activation.code, activation.param)
    if _is_grad_enabled() and _needs_graph(input, weight, bias, residual):
        return _apply_in_core(*given)
    return native.fused_forward(None, *given)


def apply_added(
    input: Tensor, residual: Tensor, weight: Maybe, bias: Maybe, norm: NormSpec, kind: int, size: int, eps: float
) -> tuple[Tensor, Tensor] | None:
    """(norm(input + residual), the sum) by one call of the core, or None where it does not take these tensors."""
    given = (input, weight, bias, residual, norm, None, kind, size, True, eps, NONE.code, 0.0)
    if _is_grad_enabled():
        if not native.ready(input, weight, bias, residual, None, kind, size, True):
            return None
        if _needs_graph(input, weight, bias, residual):
            return _apply_added(*given)
    return native.fused_inference(*given)


def _orders_bits(code: int) -> bool:
    """Whether the order of a call's bits is to be saved with them, which `Fused` does."""
    return native.keeps_bits(code) and saved_tensors_hooks_top() is not None


def _needs_graph(input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> bool:
    return (
        input.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


def unpacked(
    tensors: Sequence[Any], dy: Tensor, channels_last: bool, statistics: torch.dtype,
    packed: Sequence[int] | None = None,
) -> tuple[Operands, Saved]:  # fmt: skip
    """The operands as the forward saw them, and what was saved beside them, whatever hooks made of them meanwhile.

    The input in its dtype, which the gradient has; in the order of memory that the bits were made in: channels_last, or
    what they say where they were packed for a shape.
    """
    _storage.verify((*tensors, dy if native.plain_gradient(dy) else None))
    input, weight, bias, residual, mask, stats, bits = tensors
    input, residual = input.to(dy.dtype), None if residual is None else residual.to(dy.dtype)
    if bits is not None:
        bits = _bytes(bits)
        if packed is not None:
            from . import ordered_bits

            bits, channels_last = ordered_bits.unpack(bits, packed)
        input = in_order(input, channels_last)
    return Operands(input, weight, bias, residual, mask), Saved(unpacked_statistics(stats, statistics), bits)


def unpacked_statistics(stats: Tensor, dtype: torch.dtype) -> Tensor:
    """Statistics from what a hook on saved tensors gave back for their bytes."""
    return _floats(_bytes(stats), dtype)


def _floats(stats: Tensor, dtype: torch.dtype) -> Tensor:
    """Statistics from their bytes, (rows, their bytes); without a set, a hook may have left any strides."""
    if stats.dim() != 2 or stats.shape[1] % dtype.itemsize:
        raise RuntimeError(
            f"a hook on saved tensors gave a norm's statistics back in the shape {tuple(stats.shape)}: unpack has to "
            "give back what was packed"
        )
    rows, count = stats.shape
    if not stats.numel():
        return torch.empty(rows, count // dtype.itemsize, dtype=dtype, device=stats.device)
    if torch.is_inference_mode_enabled():  # in which torch 2.4 refuses the view
        with torch.inference_mode(False):
            return stats.contiguous().view(dtype)
    return stats.contiguous().view(dtype)


def _bytes(saved: Tensor) -> Tensor:
    """What was saved as bytes, which a hook on saved tensors may have kept in another dtype."""
    whole = saved.to(torch.uint8)
    if whole.dtype != saved.dtype and not torch.equal(whole.to(saved.dtype), saved):
        raise RuntimeError(
            f"a hook on saved tensors gave a norm's statistics back as other values, in {saved.dtype}: unpack has to "
            "give back what was packed"
        )
    return whole


def takes_operations(dy: Tensor) -> bool:
    """Whether a backward is differentiated in turn, or has a gradient that no kernel takes (a subclass, a batch)."""
    return _is_grad_enabled() or not native.plain_gradient(dy) or peek_transform() is not None or forward_level() >= 0


def composed_backward(
    norm: NormSpec, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs
) -> Gradients:
    """The first derivative by operations: the composed forward, differentiated; with a graph where one is wanted."""
    activation, dresidual = norm.activation, None
    if dy.layout is not torch.strided:  # sparse, which the derivatives of torch's casts and broadcasts refuse
        dy = dy.to_dense()
    if operands.mask is not None:
        dy = torch.where(operands.mask, dy, 0)
    if saved.bits is not None:
        # What is known of the activation's input is its sign, and the slope is locally constant.
        positive = kernel.unpack_bits(saved.bits, norm.input_of_bits(kernel, operands)).reshape(dy.shape)
        dy = torch.where(positive, dy, activation.param * dy)
        norm = replace(norm, activation=NONE)
    if norm.activation.code == IDENTITY:
        dresidual = dy
    numbers = saved.stats if kernel is composed else doubles(saved.stats)
    found = differentiated(norm, dy, operands, numbers, needs)
    if needs.residual and found[3] is None:
        found[3] = dresidual
    return Gradients(*found)


def differentiated(
    norm: NormSpec, dy: Tensor, operands: Operands, stats: Tensor, needs: Sequence[bool]
) -> list[Maybe]:  # fmt: skip
    """One gradient for each of `needs`, which go along with the operands: by the composed forward, differentiated."""
    create_graph = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():  # a backward may run where no graph is made
        # Each as a tensor of its own: where one of them has been made from another (the residual of a block, the
        # weight of a layer called twice), the way between them is no part of this derivative.
        operands = Operands._make(None if tensor is None else tensor.view_as(tensor) for tensor in operands)
        wanted = [i for i, needed in enumerate(needs) if needed and operands[i] is not None]
        for i in wanted:
            tensor = operands[i]
            if tensor is not None and not tensor.requires_grad:  # a hook on saved tensors has cut it off
                tensor.requires_grad_()
        y = norm.composed(operands, stats)
        found = torch.autograd.grad(
            y, [tensor for i in wanted if (tensor := operands[i]) is not None], dy, create_graph=create_graph
        ) if wanted else ()  # fmt: skip
    if torch.is_inference_mode_enabled():  # autograd takes no view there of what a subclass made outside of it
        found = tuple(gradient if type(gradient) is Tensor else gradient.clone() for gradient in found)
    gradients: list[Maybe] = [None] * len(needs)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return gradients
