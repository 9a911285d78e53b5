"""Instance normalization as a function: each sample's channels by themselves; group norm's kernels with C groups."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _operands, _shapes
from .._activation import Activation, resolve
from .._fx import traceable
from .._operands import Gradients, Maybe, Modulate, Needs, Operands, Saved
from ..kernels import composed, native
from ..moments import Moments, doubles
from . import _dtypes, planes, running
from ._autocast import widen
from ._autograd import GROUPS, apply_in_core
from .batch_norm import BatchNormSpec
from .group_norm import OPERATOR, TRITON_OPERATOR, GroupNormSpec, input_of_masked_bits, why_not_masked
from .road import run
from .running import Running
from .spec import Elements, NormSpec


@traceable
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
    modulate: Modulate = None,
) -> Tensor:
    r"""Instance normalization: each channel of each sample gets zero mean and unit variance over its positions.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}_{n,c}}{\sqrt{\mathrm{var}_{n,c} + \epsilon}} \cdot
              \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\Big)

    Args:
        input: (N, C, *), real floating point, with more than one position.
        running_mean, running_var: (C,) or both None. With `use_input_stats` they move in place towards the averages
            over the samples of the means and of the unbiased variances; without it they are the statistics.
        weight, bias: (C,) or None (1 and 0).
        use_input_stats: normalize by the input's own statistics.
        momentum: the weight of the new value in the running statistics.
        eps: added to the (biased) variance, inside the square root.
        residual: input's shape; added before the activation.
        activation: None, a name in torch.nn.functional, or a module.
        mask: bool, (N, *) or (N, 1, *), True = a real value. A sample's statistics are those of its real values,
            outputs under the mask are zero; a sample with fewer than two real values moves no running statistic.
        modulate: (scale, shift): scale * norm(x) + shift, after weight and bias and before the residual; each a
            floating-point tensor (N, C), or of the input's rank that broadcasts to it, or None. docs/modulate.md.

    Returns:
        The input's shape, dtype and memory format (torch loses channels_last).

    Raises:
        ValueError, RuntimeError, NotImplementedError: as torch.nn.functional.instance_norm, with its texts.

    Reference: Ulyanov, Vedaldi & Lempitsky (2016), Instance Normalization. https://arxiv.org/abs/1607.08022
    """
    if use_input_stats:
        _shapes.verify_more_than_one_position(input.size())
    _shapes.verify_momentum("instance_norm", momentum)
    statistics = None
    if running_mean is not None and running_var is not None:
        statistics = Running(running_mean, running_var, None, momentum)
    elif not use_input_stats:
        raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
    elif running_mean is not None or running_var is not None:
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    norm = InstanceNormSpec(resolve(activation), statistics, use_input_stats, eps)
    return run(norm, input, weight, bias, residual, mask, modulate)


@dataclass(slots=True, eq=False)
class InstanceNormSpec(BatchNormSpec):
    """One instance norm. training: by each sample's own statistics; else batch norm by the running ones."""

    name: ClassVar[str] = "instance_norm"

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """By groups of one channel each."""
        activation = self.activation
        if not self.training or input.dim() < 2 or activation.code not in native.FUSED_ACTIVATIONS:
            return None
        return apply_in_core(
            input, weight, bias, residual, self, self.running, GROUPS, input.shape[1], True, self.eps, activation.code,
            activation.param,
        )  # fmt: skip

    def modulated_in_core(
        self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, modulate: Modulate
    ) -> Maybe:
        """By planes, as of one sample; channels last sample by sample."""
        if not self.training or self.running is not None or input.dim() < 2:
            return None
        return planes.groups_in_core(
            lambda groups: GroupNormSpec(self.activation, groups, self.eps), input.shape[1], self.eps, input, weight,
            bias, residual, modulate,
        )  # fmt: skip

    def verified(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """The operands, checked; mask (N, 1, *). An empty batch moves no statistics and is not counted."""
        _shapes.verify_number("instance_norm", "eps", self.eps)
        _verify(operands, self.running)
        if not self.training:
            given = BatchNormSpec(self.activation, self.running, False, self.eps)
            return given.verified(operands)
        input = operands.input
        _shapes.verify_more_than_one_position(input.size())
        residual = _shapes.fitting_residual(operands.residual, input)
        norm = replace(self, running=None) if input.numel() == 0 else self
        mask = _shapes.optional_channel_mask(operands.mask, input)
        return norm, _operands.verified(operands, widen("instance_norm", input), residual, mask)

    def why_not_native(self, operands: Operands) -> str | None:
        """A group has a channel."""
        return "the input has no channels" if operands.input.shape[1] == 0 else why_not_masked(operands)

    def why_not_affine(self, operands: Operands) -> str | None:
        """A channel's statistics are of one sample; running ones are of all."""
        if self.running is not None:
            return "running statistics move"
        return planes.why_not(operands, self.activation)

    def as_affine(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """A group is a channel."""
        groups = planes.samples(operands) * operands.input.shape[1]
        return GroupNormSpec(self.activation, groups, self.eps), planes.as_planes(operands)

    def elements(self, input: Tensor) -> Elements | None:
        """By groups of one channel each."""
        return None if self.running is not None else Elements(GROUPS, input.shape[1], self.eps)

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (3, N * C)."""
        input, tracks = operands.input, self.running is not None
        y, saved = kernel.group_norm_forward(operands, input.shape[1], self.activation, self.eps, save=save or tracks)
        if tracks:
            self.move(doubles(saved.stats), input, operands.mask)
        if y.stride() != input.stride() and input.movedim(1, -1).is_contiguous():
            y = torch.empty_like(input).copy_(y)  # PyTorch's kernel loses channels_last on some devices
        return y, saved

    def move(self, stats: Tensor, input: Tensor, mask: Tensor | None = None) -> None:
        """Move the running statistics by those of the batch `input`.

        stats: (3 or more, N * C), mean and variance first; mask: (N, 1, *).
        """
        assert self.running is not None
        count: int | Tensor = math.prod(input.shape[2:])
        if mask is not None:
            count = mask.expand(len(input), 1, *input.shape[2:]).flatten(1).sum(1, keepdim=True).expand(input.shape[:2])
        mean, var = stats[:2].reshape(2, *input.shape[:2])
        _move(self.running, Moments.of_stats(count, mean, var))

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        return kernel.group_norm_backward(dy, operands, saved, operands.input.shape[1], self.activation, needs)

    def input_of_bits(self, kernel: ModuleType, operands: Operands) -> Tensor:
        """As the native kernels see it under a mask."""
        return input_of_masked_bits(kernel, operands)

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations."""
        y, moments = composed.instance_norm(operands, self.activation, self.eps)
        if stats is None and self.running is not None:
            _move(self.running, moments)
        return y

    def exported(self, operands: Operands) -> Tensor:
        """By torch.nn.functional.instance_norm."""
        input, weight, bias, *_ = operands
        mean, var, factor = None, None, 0.0
        if self.running is not None:
            mean, var, batches, momentum, _ = self.running
            factor = momentum or 0.0
            if batches is not None:
                batches.add_(1)
        y = F.instance_norm(input, mean, var, weight, bias, True, factor, self.eps)
        return composed.add_and_activate(y, operands, self.activation)

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """By the one operator of group norm."""
        operator = OPERATOR if kernel is native else TRITON_OPERATOR
        y, stats = operator(operands.input.shape[1], self.eps, activation, operands)
        if self.running is not None:
            self.move(stats, operands.input, operands.mask)
        return y

    def for_recompute(self, kernel: ModuleType, operands: Operands, stats: Tensor) -> NormSpec | None:
        """By the same samples again."""
        return replace(self, running=None)


def _move(target: Running, moments: Moments) -> None:
    """Move the running statistics by the averages over samples. moments: (N, C), a count of values for each sample."""
    count = moments.count
    mean, var = moments.mean.detach(), moments.m2.detach() / (count - 1)
    if not isinstance(count, Tensor):
        running.move_by_average(target, mean.mean(0), var.mean(0), count, mean.shape[0])
        return
    enough = count >= 2
    samples = enough.sum(0)
    mean = torch.where(enough, mean, 0).sum(0) / samples.clamp(min=1)
    var = torch.where(enough, var, 0).sum(0) / samples.clamp(min=1)
    running.move_by_average(target, mean, var, count.amax(), samples)


def _verify(operands: Operands, target: Running | None) -> None:
    input, weight, bias, *_ = operands
    if input.dim() < 2:
        raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
    n, c = input.shape[:2]
    mean, var = (None, None) if target is None else (target.mean, target.var)
    for name, tensor in (("running_mean", mean), ("running_var", var), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.numel() != c:
            # torch computes on (1, N*C, *) and its text counts so
            raise RuntimeError(f"{name} should contain {n * c} elements not {n * tensor.numel()}")
        if tensor is not None and tensor.dim():  # torch repeats them for each sample, a single number too
            _shapes.verify_vectors(**{name: tensor})
    _shapes.verify_vectors(running_mean=mean, running_var=var)
    _dtypes.verify("batch_norm", input, weight, bias)
    _dtypes.verify_statistics(mean, var)
