"""Batch norm by statistics that were found before, as operators of a compiled graph: Triton's kernels of renorm and of
synchronised batch norm, between whose two passes over memory the graph computes.

    find        the batch's statistics, float32 (5, C), without a derivative
    __call__    y by the statistics of the batch, or of those of all ranks of a group. The derivative goes through them
                to the input: with one collective, of what all ranks want of mean and m2, where they are of a group
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._activation import Activation
from .._operands import Maybe, Operands, Saved
from .._precision import accumulator_dtype
from ..distributed import total
from ..kernels import triton
from ._operator import Asked, asked_of, gradients_of, register, save, saved_of


class _ByStatistics(Asked):
    """The operators, and the derivative that they make."""

    statistics: Any = None

    def make(self) -> None:
        made = triton.operators("batch_norm")
        self.statistics, self.backward, self._sums, self._by_shares = (
            made.statistics, made.backward, made.sums, made.by_shares,
        )  # fmt: skip
        made.by_statistics.register_autograd(self._differentiate, setup_context=self._save)
        self.forward = made.by_statistics

    def find(self, operands: Operands, eps: float) -> Tensor:
        """The statistics of the input, without a derivative."""
        register(self.name)
        return self.statistics(operands.input.detach(), operands.mask, eps)

    def __call__(self, stats: Tensor, activation: Activation, operands: Operands, group: str = "") -> Tensor:
        """The output like the input. group: the name of that whose statistics they are; "": they are the batch's."""
        register(self.name)
        y, _ = self.forward(*tuple(operands)[:5], stats, activation.code, float(activation.param), group)
        return y

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *operands, stats, activation, param, group = inputs
        save(ctx, Operands(*operands), stats, output[1], activation, True)
        ctx.settings = (activation, param, group)

    def _differentiate(self, ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        (operands, saved), asked = saved_of(ctx), asked_of(ctx)
        activation, param, group = ctx.settings
        if group:
            found = self._of_ranks(dy, operands, saved, activation, param, group, asked)
        else:
            found = self.backward(dy, *operands[:5], *saved, 0, 0.0, activation, param, asked)
        return (*gradients_of(ctx, dy, found, asked), *(None,) * 5)

    def _of_ranks(
        self, dy: Tensor, operands: Operands, saved: Saved, activation: int, param: float, group: str,
        asked: Sequence[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        input, weight, bias, *_ = given = operands[:5]
        dbias, dweight = sums = self._sums(dy, *given, *saved, activation, param)
        shares = sums  # not read where the input wants no gradient
        if asked[0]:
            wanted = wanted_of_ranks(sums, saved.stats, weight).to(accumulator_dtype(input))
            shares = shares_of_batch(total(wanted, group), saved.stats)
        dx, dresidual = self._by_shares(dy, *given, *saved, shares, activation, param, [asked[0], asked[3]])
        return dx, _as(dweight, weight), _as(dbias, bias), dresidual


BY_STATISTICS = _ByStatistics("triton_batch_norm_by_statistics")


def wanted_of_ranks(sums: Tensor, stats: Tensor, weight: Maybe) -> Tensor:
    """What this rank's outputs want of the mean and of the m2 of all ranks, (2, C).

    sums: (2, C), of g and of g * xhat, g the gradient behind the activation. d xhat = -rstd * d mean
    - xhat * rstd^2 / (2 * count) * d m2.
    """
    dbias, dweight = sums
    _, _, rstd, _, count = stats
    slope = -rstd if weight is None else -rstd * weight.float()
    return torch.stack([slope * dbias, slope * rstd / (2 * count.clamp(min=1)) * dweight])


def shares_of_batch(wanted: Tensor, stats: Tensor) -> Tensor:
    """What dx loses by it, float32 (2, C): dx = rstd * weight * g - shares[0] - xhat * shares[1].

    wanted: of mean and m2, by all ranks.
    """
    dmean, dm2 = wanted
    _, _, rstd, _, count = stats
    return torch.stack([-dmean / count.clamp(min=1), -2 * dm2 / rstd]).float()


def _as(gradient: Tensor, parameter: Maybe) -> Tensor:
    return gradient if parameter is None else gradient.to(parameter.dtype)
