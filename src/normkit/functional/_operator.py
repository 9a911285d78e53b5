"""Fused kernels under torch.compile: each norm is one operator, which inductor calls instead of fusing (the native
kernels, opaque to it) or sees the kernels of (Triton's).

`normkit::<norm>` computes (output, stats, bits) and `normkit::<norm>_backward` the gradients; both are functional, so
running statistics are moved by tensor operations outside, from the `stats` that came out. An operator's body makes the
norm's spec from plain numbers and uses it as eager mode does. One derivative: that is what compiled graphs have.

The schemas below are the operators' signatures; the functions behind them take the same arguments in the same order.

Hooks on saved tensors see what a graph saves as well: between the two operators the native kernels' statistics are
bytes (`_autograd.py` says why), and bits say in which order they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._activation import IDENTITY, Activation, by_code
from .._operands import Maybe, Needs, Operands, Saved
from .._shapes import is_channels_last
from .._torch import asked_while_traced
from ..kernels import native, triton
from ..moments import doubles
from ._autograd import unpacked
from .spec import NormSpec

# What makes a norm's spec from plain numbers: (size, eps, activation); `size` is the norm's own integer.
Make = Callable[[int, float, Activation], NormSpec]
# How many sets of statistics an input has: (input, size).
Sets = Callable[[Tensor, int], int]

_DOUBLE = native.STATISTICS.itemsize
_OPERANDS = "Tensor input, Tensor? weight, Tensor? bias, Tensor? residual"
_FACTS = "SymInt size, float eps, int activation, float param"
_FORWARD = f"({_OPERANDS}, {_FACTS}) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor dy, {_OPERANDS}, Tensor stats, Tensor? bits, {_FACTS}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)


class Asked:
    """Operators that torch learns of with the first graph that asks: each costs the import a millisecond otherwise.

    `forward` and `backward` are attributes, which Dynamo guards one by one; a dictionary it would guard whole.
    """

    _all: ClassVar[dict[str, Asked]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()
    forward: Any = None
    backward: Any = None

    def __init__(self, name: str) -> None:
        self.name = name
        self._all[name] = self

    def make(self) -> None:
        """Set `forward` and `backward`."""
        raise NotImplementedError


@asked_while_traced
def register(name: str) -> None:
    """Make the operators of that name known to torch."""
    asked = Asked._all[name]
    with Asked._lock:
        if asked.forward is None:
            asked.make()


class Operator(Asked):
    """The two operators of one norm, and the derivative that they make."""

    def __init__(self, name: str, takes: int, operators: Callable[[], tuple[Any, Any, bool]]) -> None:
        """operators: makes (forward, backward, whether the forward keeps bits of the activation). takes: how many
        operands they have, input, weight, bias, residual and maybe the mask."""
        super().__init__(name)
        self._takes, self._operators = takes, operators

    def make(self) -> None:
        forward, self.backward, self._keeps_bits = self._operators()
        forward.register_autograd(self._differentiate, setup_context=self._save)
        self.forward = forward

    def __call__(self, size: int, eps: float, activation: Activation, operands: Operands) -> tuple[Tensor, Tensor]:
        """(output like the input, stats (3, sets) float64; Triton's (4, sets), the count last)."""
        register(self.name)
        given = tuple(operands)[: self._takes]
        output, stats, _ = self.forward(*given, size, eps, activation.code, float(activation.param))
        return output, stats.view(native.STATISTICS) if stats.dtype == torch.uint8 else doubles(stats)

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *operands, size, eps, activation, param = inputs
        _, stats, bits = output
        save(ctx, Operands(*operands), stats, bits, activation, self._keeps_bits)
        ctx.settings = (size, eps, activation, param)

    def _differentiate(self, ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        operands, saved = saved_of(ctx)
        asked = asked_of(ctx)
        found = self.backward(dy, *operands[: self._takes], *saved, *ctx.settings, asked)
        return (*gradients_of(ctx, dy, found, asked), *(None,) * self._takes)


def save(ctx: Any, operands: Operands, stats: Tensor, bits: Tensor, activation: int, keeps_bits: bool) -> None:
    """What the derivative reads. Behind no activation and under no mask the residual's gradient is dy itself."""
    input, weight, bias, residual, mask, *_ = operands
    reads_residual = activation != IDENTITY and not (keeps_bits and native.keeps_bits(activation))
    ctx.save_for_backward(input, weight, bias, residual if reads_residual else None, mask, stats, bits)
    ctx.passes = residual is not None and activation == IDENTITY and mask is None


def saved_of(ctx: Any) -> tuple[Operands, Saved]:
    """The same in the derivative; no bits for an empty tensor."""
    *operands, stats, bits = ctx.saved_tensors
    return Operands(*operands), Saved(stats, bits if bits.numel() else None)


def asked_of(ctx: Any) -> list[bool]:
    """Whose gradients the derivative computes, of input, weight, bias, residual."""
    *needs, of_residual = ctx.needs_input_grad[:4]
    return [*needs, of_residual and not ctx.passes]


def gradients_of(ctx: Any, dy: Tensor, found: Sequence[Tensor], asked: Sequence[bool]) -> list[Maybe]:
    """What autograd is given for these four."""
    given: list[Maybe] = [gradient if wanted else None for gradient, wanted in zip(found, asked, strict=True)]
    if ctx.passes and ctx.needs_input_grad[3]:
        given[3] = dy
    return given


def native_operator(norm: str, make: Make, sets: Sets) -> Operator:
    """A norm's operators by the native kernels, opaque to the compiler."""

    def operators() -> tuple[Any, Any, bool]:
        bodies = _Native(make, sets)
        backward = define(f"{norm}_backward", _BACKWARD, bodies.run_backward, bodies.fake_backward)
        return define(norm, _FORWARD, bodies.run_forward, bodies.fake_forward), backward, True

    return Operator(norm, 4, operators)


def triton_operator(norm: str) -> Operator:
    """A norm's operators by Triton's kernels, which the compiler sees into."""

    def operators() -> tuple[Any, Any, bool]:
        made = triton.operators(norm)
        return made.forward, made.backward, made.KEEPS_BITS

    return Operator(f"triton_{norm}", 5, operators)


class _Native:
    """The bodies of a norm's two operators on the native kernels."""

    def __init__(self, make: Make, sets: Sets) -> None:
        from . import ordered_bits  # here: few programs are compiled, all would load it

        self._make, self._sets, self._bits = make, sets, ordered_bits

    def run_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        operands, (size, eps, activation, param) = Operands(*arguments[:4]), arguments[4:]
        output, saved = self._make(size, eps, by_code(activation, param)).forward(native, operands, True)
        assert saved is not None
        input, bits = operands.input, saved.bits
        bits = _none(input) if bits is None else self._bits.pack(bits, input.shape, is_channels_last(input))
        return like(output, input), saved.stats.view(torch.uint8), bits

    def fake_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        (input, _, _, residual), (size, _, activation, _) = arguments[:4], arguments[4:]
        stats = input.new_empty((3, _DOUBLE * self._sets(input, size)), dtype=torch.uint8)
        count = self._bits.size(input.shape) if residual is not None and native.keeps_bits(activation) else 0
        return torch.empty_like(input), stats, input.new_empty((count,), dtype=torch.uint8)

    def run_backward(self, dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        (input, *others, stats, bits), (size, eps, activation, param, needs) = arguments[:6], arguments[6:]
        operands, saved = unpacked((input, *others, None, stats, bits), dy, False, native.STATISTICS, input.shape)
        norm = self._make(size, eps, by_code(activation, param))
        found = norm.backward(native, dy, operands, saved, Needs(*needs))
        return gradients(found, *operands[:3], operands.input)

    def fake_backward(self, dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        input, weight, bias, _ = arguments[:4]
        return fake_gradients(arguments[-1], input, weight, bias, input)


def define(
    name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any], device: str | None = "cpu"
) -> Any:
    """An operator of torch, opaque to the compiler. device: where it may run; None: anywhere."""
    operator = torch.library.custom_op(f"normkit::{name}", run, mutates_args=(), device_types=device, schema=schema)
    operator.register_fake(fake)
    return operator


def _none(input: Tensor) -> Tensor:
    """An operator cannot return None; an empty tensor stands for it."""
    return input.new_empty((0,), dtype=torch.uint8)


def gradients(found: Sequence[Maybe], input: Tensor, *others: Maybe) -> tuple[Tensor, ...]:
    """What a backward operator returns: each gradient as its operand lies."""
    return tuple(
        _none(input) if gradient is None or operand is None else like(gradient.to(operand.dtype), operand)
        for gradient, operand in zip(found, (input, *others), strict=True)
    )


def fake_gradients(needs: Sequence[bool], input: Tensor, *others: Maybe) -> tuple[Tensor, ...]:
    """What its fake kernel promises."""
    return tuple(
        torch.empty_like(operand) if needed and operand is not None else _none(input)
        for needed, operand in zip(needs, (input, *others), strict=True)
    )


def like(tensor: Tensor, input: Tensor) -> Tensor:
    """The tensor in the strides that the fake kernel promised."""
    promised = torch.empty_like(input, device="meta")
    return tensor if tensor.stride() == promised.stride() else torch.empty_like(input).copy_(tensor)
