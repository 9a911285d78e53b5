"""The autograd of fused kernels: one Function for every norm.

A norm describes its call (which kernel, which statistics, eps, activation) by a small `Call`; `run` applies it. The
fused backward serves first derivatives. Under create_graph=True the composed operations are differentiated instead, so
derivatives of every order are right. Saved: the input, the parameters, the statistics, and for a residual either one
bit an element (activations whose slope depends on the sign alone) or the residual itself (smooth activations).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._activation import IDENTITY, NONE, Activation
from ..kernels import native

Gradients: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Forwarded: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]  # output, statistics, bits
Needs: TypeAlias = tuple[bool, bool, bool, bool]  # of input, weight, bias and residual: whose gradient is wanted


class Operands(NamedTuple):
    """What a norm works on: input (N, C, *) or (*, D); weight, bias (C,) or the normalized shape; residual as input."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None


@dataclass(slots=True, eq=False)
class Call(ABC):
    """One call of a norm on a fused kernel. kernel: a module of the shape of :mod:`normkit.kernels.native`."""

    kernel: ModuleType
    activation: Activation

    @abstractmethod
    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, statistics, bits); `save` asks for what the backward needs."""

    @abstractmethod
    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input, weight, bias and residual, in their dtypes; None where not needed."""

    @abstractmethod
    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations, with this activation."""

    def compiled(self, of: Operands) -> Tensor:
        """The same under torch.compile; those that `choose` leaves to composed operations there have none."""
        raise NotImplementedError(f"{type(self).__name__} is composed under torch.compile")

    def reaching(self, dy: Tensor) -> Tensor:
        """What of the output's gradient reaches the sum of norm and residual: under a mask nothing does."""
        return dy

    def again(self, stats: Tensor) -> Call | None:
        """The call that makes this one's output from its statistics and moves none; None: the output has to be kept."""
        return self


def run(call: Call, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """The norm's output; residual and activation follow as operations of their own where the kernel lacks them."""
    kernel, activation = call.kernel, call.activation
    if activation.code not in kernel.FUSED_ACTIVATIONS or (residual is not None and not kernel.FUSES_RESIDUAL):
        y = run(replace(call, activation=NONE), input, weight, bias, None)
        return after(y, residual, activation)
    if torch.compiler.is_compiling():
        return call.compiled(Operands(input, weight, bias, residual))
    if _needs_graph(input, weight, bias, residual):
        return _apply(input, weight, bias, residual, call)
    return call.forward(Operands(input, weight, bias, residual), False)[0]


def run_masked(
    call: Call, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor
) -> Tensor:
    """`run` for a call that leaves zeros under its mask, (N, 1, *); so does an activation that follows it."""
    if call.activation.code in call.kernel.FUSED_ACTIVATIONS:
        return run(call, input, weight, bias, residual)
    residual = None if residual is None else torch.where(mask, residual, 0)
    return torch.where(mask, run(call, input, weight, bias, residual), 0)


def run_channels(
    call: Call,
    running: tuple[Any, ...] | None,
    groups: int,
    training: bool,
    eps: float,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """`run` for an eager call of the native core whose tensors are ready: nothing of it is left to Python.

    running: where `call` has its statistics, a :class:`normkit.functional._running.Running`. groups: 0 for statistics
    per channel over the batch.
    """
    activation = call.activation
    if activation.code not in native.FUSED_ACTIVATIONS or on_output is not None:
        return run(call, input, weight, bias, residual)
    kind, code, param = int(groups > 0), activation.code, activation.param
    arguments = (input, weight, bias, residual, call, running, kind, groups, training, eps, code, param)
    if _needs_graph(input, weight, bias, residual):
        return _apply_core(*arguments)
    return native.fused_forward(None, *arguments)


def run_rows(
    call: Call, width: int, rms: bool, eps: float, input: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """The same for rows of `width` elements."""
    if on_output is not None:
        return run(call, input, weight, bias, None)
    arguments = (input, weight, bias, None, call, None, 2 + rms, width, True, eps, 0, 0.0)
    if _needs_graph(input, weight, bias, None):
        return _apply_core(*arguments)
    return native.fused_forward(None, *arguments)


def _needs_graph(input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        input.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


def after(y: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
    """Residual and activation as operations of their own."""
    return activation(y if residual is None else y + residual.to(y.dtype))


_is_grad_enabled = torch.is_grad_enabled
_peek_transform = torch._C._functorch.peek_interpreter_stack

# Told of every output and of what made it while some thread is in normkit.recompute_outputs().
on_output: Callable[..., None] | None = None


class Fused(torch.autograd.Function):
    """A fused kernel's forward and first derivative, the composed operations for all higher ones."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, call = arguments
        input, weight, bias, residual = of = Operands(*tensors)
        y, stats, bits = call.forward(of, True)
        kept = residual if bits is None and call.activation.code != IDENTITY else None
        saved = None if stats is None else stats.view(torch.uint8)
        ctx.save_for_backward(input, weight, bias, kept, saved, bits)
        ctx.call = call
        if on_output is not None:
            on_output(call, y, stats, *of)
            if saved is not None:
                saved.__dict__["statistics"] = stats  # which own the output's recipe
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (grad_output,) = gradients
        if _takes_operations(grad_output):
            return (*_differentiable_backward(ctx, grad_output, ctx.needs_input_grad[:4]), None)
        *tensors, stats, bits = ctx.saved_tensors
        of, needs = Operands(*tensors), ctx.needs_input_grad[:4]
        return (*ctx.call.backward(grad_output, of, _doubles(stats), bits, needs), None)


class FusedCore(torch.autograd.Function):
    """The same for tensors that the native core takes as they are: each half is one call of it."""

    forward = staticmethod(native.fused_forward)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (grad_output,) = gradients
        if _takes_operations(grad_output):
            input, *others, _, stats, bits = ctx.saved_tensors
            if bits is not None:  # their memory order is the forward's, whatever a hook made of the strides
                bits, last = _bytes(bits), ctx.plan[5]
                input = input.movedim(1, -1).contiguous().movedim(-1, 1) if last else input.contiguous()
            of, needs = Operands(input, *others), ctx.needs_input_grad[:4]
            return (*composed_backward(ctx.norm, grad_output, of, _doubles(stats), bits, needs), *(None,) * 8)
        return native.fused_backward(ctx, grad_output)


def _doubles(saved: Tensor) -> Tensor:
    """Statistics (3, *) float64 from their bytes."""
    return _bytes(saved).contiguous().view(torch.float64)


def _bytes(saved: Tensor) -> Tensor:
    """What was saved as bytes, which a hook on saved tensors may have kept in another dtype."""
    whole = saved.to(torch.uint8)
    if whole.dtype != saved.dtype and not torch.equal(whole.to(saved.dtype), saved):
        raise RuntimeError("a hook on saved tensors changed the statistics: unpack has to give back what was packed")
    return whole


# Function.apply first asks whether a torch.func transform is active; no fused kernel is chosen under one.
_apply = super(torch.autograd.Function, Fused).apply
_apply_core = super(torch.autograd.Function, FusedCore).apply


def _takes_operations(grad_output: Tensor) -> bool:
    """Whether a backward is differentiated in turn, or has a gradient that no kernel takes (a batch, a subclass)."""
    return (
        _is_grad_enabled()
        or not native.plain_gradient(grad_output)
        or _peek_transform() is not None
        or forward_ad._current_level >= 0
    )


def _differentiable_backward(ctx: Any, grad_output: Tensor, needs: Needs) -> list[Tensor | None]:
    """Gradients of input, weight, bias and residual by differentiable operations."""
    *tensors, stats, bits = ctx.saved_tensors
    return composed_backward(ctx.call, grad_output, Operands(*tensors), _doubles(stats), bits, needs)


def composed_backward(
    call: Call, grad_output: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs
) -> list[Tensor | None]:
    """The first derivative by operations: the composed forward, differentiated; with a graph where one is wanted."""
    activation, dresidual, grad_output = call.activation, None, call.reaching(grad_output)
    create_graph = torch.is_grad_enabled()
    if bits is not None:
        # What is known of the activation's input is its sign, and the slope is locally constant.
        positive = call.kernel.unpack_bits(bits, of.input)
        grad_output = torch.where(positive, grad_output, activation.param * grad_output)
        activation = NONE
    if activation.code == IDENTITY:
        dresidual = grad_output
    with torch.enable_grad():
        # Each as a tensor of its own: where one of them has been made from another (the residual of a block, the
        # weight of a layer called twice), the way between them is no part of this derivative.
        of = Operands._make(None if tensor is None else tensor.view_as(tensor) for tensor in of)
        y = call.composed(of, activation, stats)
        wanted = [i for i, tensor in enumerate(of) if tensor is not None and needs[i]]
        found = torch.autograd.grad(
            y, [tensor for i in wanted if (tensor := of[i]) is not None], grad_output, create_graph=create_graph
        ) if wanted else ()  # fmt: skip
    gradients: list[Tensor | None] = [None, None, None, dresidual if needs[3] else None]
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return gradients
