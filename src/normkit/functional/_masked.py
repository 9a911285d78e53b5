"""Masked batch norm on the native kernels.

Values under the mask are replaced, per channel, by one value that is real and so near the others. What the replaced
values add to the sums about it is nothing: the kernels' moments of all M values give those of the m real ones exactly,

    mean = f + M/m (mean_M - f)        var = M/m (var_M + (mean_M - f)^2) - (mean - f)^2        f: the value put in

A select before and one behind the kernels, in each direction; NaN and Inf under the mask reach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._activation import IDENTITY, Activation
from ..kernels import composed
from . import _running
from ._fused import Call, Forwarded, Gradients, Needs, Operands
from ._running import Running


@dataclass(slots=True, eq=False)
class MaskedBatchNormCall(Call):
    """One batch norm of the values that a mask keeps; moves the running statistics in its forward.

    mask: bool, (N, 1, *), broadcastable to the input. training: normalize by the batch's statistics.
    """

    running: Running | None
    training: bool
    eps: float
    mask: Tensor

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (3, C) float64: mean, biased var, rstd; bits)."""
        value, count = self._value(of.input), self._count(of.input)
        filled = _select(self.mask, of.input, value)
        if self.training:
            mean, var = self._statistics(filled, value, count)
        else:
            assert self.running is not None
            mean, var = self.running.mean, self.running.var
        y, stats, bits = self.kernel.batch_norm_inference(
            filled, mean, var, *of[1:], self.activation.code, self.activation.param, self.eps,
            save_for_backward=save,
        )  # fmt: skip
        if self.training and self.running is not None:
            _running.move_native(self.running, torch.stack([mean, var]), count)
        return y.masked_fill_(~self.mask, 0), stats, bits

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (N, C, *), weight (C,), bias (C,), residual (N, C, *); zero under the mask."""
        input, weight, bias, residual = of
        zero = torch.zeros((), dtype=input.dtype)
        dy = _select(self.mask, dy, zero)
        residual = None if residual is None else _select(self.mask, residual, zero)
        filled = _select(self.mask, input, self._value(input))
        dx, dweight, dbias, dresidual = self.kernel.batch_norm_backward(
            dy, filled, weight, bias, residual, bits, stats, self.activation.code, self.activation.param,
            training=self.training, needs=needs, count=self._count(input) if self.training else 0,
        )  # fmt: skip
        if dx is not None:
            dx.masked_fill_(~self.mask, 0)
        if dresidual is not None and self.activation.code != IDENTITY:
            dresidual.masked_fill_(~self.mask, 0)  # an open gate may have met a value that was put in
        return dx, dweight, dbias, dresidual

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations."""
        input, weight, bias, residual = of
        if self.training:
            return composed.batch_norm(
                input, weight, bias, self.eps, residual=residual, activation=activation, mask=self.mask
            )[0]
        return composed.batch_norm_inference(
            input, stats[0], stats[1], weight, bias, self.eps, residual=residual, activation=activation, mask=self.mask
        )

    def reaching(self, dy: Tensor) -> Tensor:
        """What the mask keeps."""
        return torch.where(self.mask, dy, 0)

    def again(self, stats: Tensor) -> Call:
        """In training by the batch again: its moments are made of more values than the mask keeps."""
        return replace(self, running=None if self.training else Running(stats[0], stats[1], None, None))

    def _count(self, input: Tensor) -> int:
        """How many real values each channel has."""
        repeats = (input.numel() // max(1, input.shape[1])) // max(1, self.mask.numel())
        return int(self.mask.sum()) * repeats

    def _value(self, input: Tensor) -> Tensor:
        """What stands for the values under the mask, beside the input: a real one of each channel, 0 where none is."""
        flat = int(self.mask.reshape(-1).to(torch.uint8).argmax())
        at: list[int] = []
        for size in reversed(self.mask.shape):
            flat, index = divmod(flat, size)
            at.insert(0, index)
        if not self.training or not self.mask[tuple(at)]:
            return torch.zeros((), dtype=input.dtype)
        sample, positions = at[0], tuple(at[2:])
        return input[sample].movedim(0, -1)[positions].reshape(-1, *[1] * (input.dim() - 2))

    def _statistics(self, filled: Tensor, value: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) of the `count` real values, float64; zeros where there are none."""
        all_mean, all_var, _ = self.kernel.batch_norm_statistics(filled)
        if count == 0:
            return torch.zeros_like(all_mean), torch.zeros_like(all_var)
        value = value.flatten().double()
        share = filled.numel() / filled.shape[1] / count
        distance = all_mean - value
        offset = share * distance
        var = share * (all_var + distance * distance) - offset * offset
        return value + offset, var.clamp(min=0)


def _select(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """torch.where in the strides of `yes`."""
    return torch.where(mask, yes, no, out=torch.empty_like(yes))
