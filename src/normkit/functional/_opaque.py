"""Fused kernels under torch.compile: each norm is one opaque operator, which inductor calls instead of fusing.

`normkit::<norm>` computes (output, stats, bits) and `normkit::<norm>_backward` the gradients; both are functional, so
running statistics are moved by tensor operations outside, from the `stats` that came out. An operator's body makes the
norm's `Call` from plain numbers and uses it as eager mode does. One derivative: that is what compiled graphs have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._activation import IDENTITY, Activation, by_code
from ..kernels import native
from ._fused import Call, Gradients, Operands

# What makes a norm's call from plain numbers: (size, eps, activation); `size` is the norm's own integer.
Make = Callable[[int, float, Activation], Call]
# How many sets of statistics an input has: (input, size).
Sets = Callable[[Tensor, int], int]


class Opaque:
    """The two operators of one norm. Call it like the norm: it returns (output, stats)."""

    def __init__(self, norm: str, make: Make, sets: Sets) -> None:
        self._make, self._sets = make, sets
        custom = torch.library.custom_op
        self._backward = custom(f"normkit::{norm}_backward", self._run_backward, mutates_args=(), device_types="cpu")
        self._backward.register_fake(self._fake_backward)
        self._forward = custom(f"normkit::{norm}", self._run_forward, mutates_args=(), device_types="cpu")
        self._forward.register_fake(self._fake_forward)
        self._forward.register_autograd(self._differentiate, setup_context=_save)

    def __call__(
        self,
        size: int,
        eps: float,
        activation: Activation,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """(output like the input, stats (3, sets) float64)."""
        output, stats, _ = self._forward(
            input, weight, bias, residual, size, eps, activation.code, float(activation.param)
        )
        return output, stats

    def _run_forward(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        size: int,
        eps: float,
        activation: int,
        param: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        call = self._make(size, eps, by_code(activation, param))
        output, stats, bits = call.forward(Operands(input, weight, bias, residual), True)
        assert stats is not None
        return _like(output, input), stats, _none(input) if bits is None else bits

    def _fake_forward(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        size: int,
        eps: float,
        activation: int,
        param: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        stats = input.new_empty((3, self._sets(input, size)), dtype=torch.float64)
        count = native.count_bit_bytes(input) if residual is not None and native.keeps_bits(activation) else 0
        return torch.empty_like(input), stats, input.new_empty((count,), dtype=torch.uint8)

    def _run_backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        bits: Tensor | None,
        stats: Tensor,
        size: int,
        eps: float,
        activation: int,
        param: float,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        call = self._make(size, eps, by_code(activation, param))
        wanted = (needs[0], needs[1], needs[2], needs[3])
        of = Operands(input, weight, bias, residual)
        dx, dweight, dbias, dresidual = call.backward(grad_output, of, stats, bits, wanted)
        return (
            _none(input) if dx is None else _like(dx, input),
            _none(input) if dweight is None or weight is None else dweight.to(weight.dtype),
            _none(input) if dbias is None or bias is None else dbias.to(bias.dtype),
            _none(input) if dresidual is None else _like(dresidual, input),
        )

    def _fake_backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        bits: Tensor | None,
        stats: Tensor,
        size: int,
        eps: float,
        activation: int,
        param: float,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            torch.empty_like(input) if needs[0] else _none(input),
            torch.empty_like(weight) if needs[1] and weight is not None else _none(input),
            torch.empty_like(bias) if needs[2] and bias is not None else _none(input),
            torch.empty_like(input) if needs[3] else _none(input),
        )

    def _differentiate(self, ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Any, ...]:
        input, weight, bias, residual, stats, bits = ctx.saved_tensors
        size, eps, activation, param, has_residual = ctx.settings
        needs = list(ctx.needs_input_grad[:4])
        through = has_residual and activation == IDENTITY  # then the residual's gradient is grad_output itself
        asked = [*needs[:3], needs[3] and not through]
        found = self._backward(
            grad_output, input, weight, bias, residual, bits if bits.numel() else None, stats, size, eps, activation,
            param, asked,
        )  # fmt: skip
        gradients: Gradients = tuple(g if asked[i] else None for i, g in enumerate(found))  # type: ignore[assignment]  # four
        dresidual = grad_output if through and needs[3] else gradients[3]
        return (*gradients[:3], dresidual, None, None, None, None)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, weight, bias, residual, size, eps, activation, param = inputs
    _, stats, bits = output
    needs_residual = residual is not None and activation != IDENTITY and not native.keeps_bits(activation)
    ctx.save_for_backward(input, weight, bias, residual if needs_residual else None, stats, bits)
    ctx.settings = (size, eps, activation, param, residual is not None)


def _none(input: Tensor) -> Tensor:
    """An operator cannot return None; an empty tensor stands for it."""
    return input.new_empty((0,), dtype=torch.uint8)


def _like(tensor: Tensor, input: Tensor) -> Tensor:
    """The tensor in the strides that the fake kernel promised."""
    like = torch.empty_like(input, device="meta")
    return tensor if tensor.stride() == like.stride() else torch.empty_like(input).copy_(tensor)
