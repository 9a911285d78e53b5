"""An addition in front of a norm of rows, as pre-norm blocks have it: both in one pass over memory.

Rules: the result is, to the bit, what the addition and the norm give one after the other: the sum is rounded to the
tensors' dtype before it is normalized, and the norm's gradient before the sum's own is added. Whatever the core does
not take as it is (a mask, a wider residual, a transform, an export) is these two operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _operands, _shapes
from .._operands import Maybe, Modulate, Needs, Operands
from ..kernels import native
from . import _autograd
from . import mask as masks
from ._operator import Asked, define, fake_gradients, gradients, like, register
from .choose import choose, is_eager
from .road import run
from .spec import NormSpec


def run_added(
    norm: NormSpec, input: Tensor, residual: Tensor, weight: Maybe = None, bias: Maybe = None, mask: Maybe = None,
    modulate: Modulate = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(the norm's output on input + residual, the sum).

    Raises:
        TypeError, ValueError: a residual that has not the input's shape, or is not floating point.
        what the norm's function documents.
    """
    _shapes.verify_residual(residual, input)
    plain = mask is None and modulate is None
    if plain and masks.follow is None and _autograd.output_listener is None and is_eager():
        made = norm.added_in_core(input, residual, weight, bias)
        if made is not None:
            return made
    elif plain and torch.compiler.is_compiling() and input.dtype == residual.dtype:
        served, operands = norm.verified(Operands(input, weight, bias))
        operands = _operands.verified(operands, operands.input, residual, operands.mask)
        if operands.input is input and choose(served, operands)[0] == "native":
            y, total = served.added_operator(operands)
            return norm.activation.function(y), total
    total = input + residual
    return run(norm, total, weight, bias, mask=mask, modulate=modulate), total


_FORWARD = (
    "(Tensor input, Tensor? weight, Tensor? bias, Tensor residual, SymInt size, float eps) -> (Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor dy, Tensor dsum, Tensor total, Tensor? weight, Tensor? bias, Tensor stats, SymInt size, bool[] needs)"
    " -> (Tensor, Tensor, Tensor)"
)


class AddedOperator(Asked):
    """`normkit::add_<norm>` of compiled graphs, (output, sum, the statistics' bytes), and its backward."""

    def __init__(self, name: str, *, rms: bool) -> None:
        super().__init__(name)
        self._rms = rms

    def make(self) -> None:
        self.backward = define(f"{self.name}_backward", _BACKWARD, self._run_backward, self._fake_backward)
        forward = define(self.name, _FORWARD, self._run_forward, self._fake_forward)
        forward.register_autograd(self._differentiate, setup_context=_save)
        self.forward = forward

    def __call__(self, size: int, eps: float, operands: Operands) -> tuple[Tensor, Tensor]:
        """(output, sum), both like the input."""
        register(self.name)
        y, total, _ = self.forward(*tuple(operands)[:4], size, eps)
        return y, total

    def _run_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        operands, (size, eps) = Operands(*arguments[:4]), arguments[4:]
        y, stats, total = native.added_forward(operands, size, self._rms, eps)
        return like(y, operands.input), like(total, operands.input), stats.view(torch.uint8)

    def _fake_forward(self, input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        size = arguments[3]
        stats = input.new_empty((3, input.numel() // size * native.STATISTICS.itemsize), dtype=torch.uint8)
        return torch.empty_like(input), torch.empty_like(input), stats

    def _run_backward(self, dy: Tensor, dsum: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        (total, weight, bias, stats), (size, needs) = arguments[:4], arguments[4:]
        tensors = (total, weight, bias, None, None, stats, None)
        operands, saved = _autograd.unpacked(tensors, dy, False, native.STATISTICS)
        found = native.added_gradients(
            dy, dsum, operands, saved.stats, size, self._rms, Needs(needs[0], needs[1], needs[2], False)
        )
        return gradients(found[:3], *operands[:3])

    def _fake_backward(self, dy: Tensor, dsum: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        return fake_gradients(arguments[-1], *arguments[:3])

    def _differentiate(self, ctx: Any, dy: Tensor, dsum: Tensor, _: Any) -> tuple[Any, ...]:
        total, weight, bias, stats = ctx.saved_tensors
        of_input, of_weight, of_bias, of_residual = ctx.needs_input_grad[:4]
        needs = [of_input or of_residual, of_weight, of_bias]
        found = self.backward(dy, dsum, total, weight, bias, stats, ctx.size, needs)
        of_sum, of_weight, of_bias = (
            gradient if needed else None for gradient, needed in zip(found, needs, strict=True)
        )
        return of_sum, of_weight, of_bias, of_sum, None, None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, weight, bias, _, size, _ = inputs
    _, total, stats = output
    ctx.save_for_backward(total, weight, bias, stats)
    ctx.size = size
