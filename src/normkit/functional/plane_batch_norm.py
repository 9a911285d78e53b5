"""Batch norm in training with a weight and a bias for each plane: what a modulation per sample and channel makes of it.

    xhat = (x - mean_c) * rstd_c        y = activation(weight_nc * xhat + bias_nc + residual)

Forward: the native kernels' statistics of the batch, then y as by given ones, plane by plane. Backward: dx
as if they were constants, with the sums of each plane; then what all planes of a channel want of its mean and variance,
which is one more batch norm of x, with that dx as its residual.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from .. import _operands, _shapes
from .._operands import Gradients, Needs, Operands, Saved, in_dtype_of
from .._shapes import is_channels_last
from .._torch import reshaped_as_no_view
from ..kernels import composed, native
from ..kernels.native_means import in_float32
from ..moments import Moments
from . import planes, running
from .running import Running
from .spec import NormSpec


@dataclass(slots=True, eq=False)
class PlaneBatchNormSpec(NormSpec):
    """One such norm, on operands that are verified, row-major or channels last; weight, bias: (N * C,). On the native
    kernels alone."""

    running: Running | None
    eps: float

    name: ClassVar[str] = "batch_norm"
    has_aten: ClassVar[bool] = False

    def verified(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """Batch norm has seen to it."""
        return self, operands

    def buffers(self) -> tuple[Tensor, ...]:
        """The running mean and variance."""
        return () if self.running is None else (self.running.mean, self.running.var)

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (3, C), whatever the memory format: a checkpoint's second forward may see another."""
        input = operands.input
        found, flat = native.batch_norm_statistics(input), input.is_contiguous()
        mean, var = (row.repeat(input.shape[0] if flat else 1) for row in found[:2])
        y, saved = native.batch_norm_inference(
            planes.for_kernels(operands, flat), mean, var, self.activation, self.eps, save=save
        )
        if self.running is not None:
            running.move_by_stats(self.running, found, _shapes.values_per_channel(input.shape))
        if saved is not None and flat:
            saved = saved._replace(stats=saved.stats[:, : input.shape[1]].contiguous())
        return y if y.shape == input.shape else reshaped_as_no_view(y, input.shape), saved

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (N, C, *), weight (N * C,), bias (N * C,), residual (N, C, *)."""
        return Gradients(*in_float32(lambda dy, operands: self._backward(dy, operands, saved, needs), dy, operands))

    def _backward(self, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        input, weight, bias, *_ = operands
        n, c = input.shape[:2]
        mean, var, _ = saved.stats
        kind = torch.float64  # so are the sums then
        scale = torch.ones(n * c, dtype=kind) if weight is None else weight.to(kind)
        shift = torch.zeros_like(scale) if bias is None else bias.double()
        flat = not is_channels_last(input)  # other strides: a hook on saved tensors may have given it back in them
        laid = planes.for_kernels(_operands.under(operands, scale, shift), flat)
        if flat:
            saved = saved._replace(stats=saved.stats.repeat(1, n))
        dx, dweight, dbias, dresidual = native.batch_norm_backward(
            dy.reshape(laid.input.shape), laid, saved, self.activation,
            Needs(needs.input, True, True, needs.residual), training=False,
        )  # fmt: skip
        assert dweight is not None
        assert dbias is not None
        if needs.input:
            assert dx is not None
            values = _shapes.values_per_channel(input.shape)
            of_var, of_mean = (-(scale * sums.reshape(-1)).reshape(n, c).sum(0) / values for sums in (dweight, dbias))
            dx = native.add_means(dx.reshape(input.shape), input, of_var, of_mean, mean, var, self.eps)
        return Gradients(
            dx,
            in_dtype_of(weight, dweight.reshape(-1), needs.weight),
            in_dtype_of(bias, dbias.reshape(-1), needs.bias),
            None if dresidual is None else dresidual.reshape(input.shape),
        )

    def input_of_bits(self, kernel: ModuleType, operands: Operands) -> Tensor:
        """As `planes.for_kernels` has it."""
        return planes.for_kernels(operands, not is_channels_last(operands.input)).input

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations; asked for by derivatives of a higher order, when the statistics have moved."""
        input = operands.input
        beside = [*input.shape[:2], *[1] * (input.dim() - 2)]
        weight, bias = (None if p is None else p.reshape(beside) for p in (operands.weight, operands.bias))
        wide = composed.widened(operands)
        xhat = composed.standardize(wide, Moments.of(wide, _shapes.batch_dims(wide.dim())), self.eps, None)
        return composed.finish(xhat, _operands.under(operands, weight, bias), self.activation)

    def for_recompute(self, kernel: ModuleType, operands: Operands, stats: Tensor) -> NormSpec | None:
        """By the same batch again."""
        return replace(self, running=None)
