"""Batch normalization: the function, and the spec that every norm over the batch builds on."""

from __future__ import annotations

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
from ..kernels import composed, native, native_masked
from ..moments import Moments, doubles
from . import _dtypes, planes, running
from ._autocast import widen
from ._autograd import BATCH, apply_in_core
from ._operator import native_operator, triton_operator
from .choose import may_look
from .road import run
from .running import Running
from .spec import Elements, NormSpec


@traceable
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | nn.Module | None = None,
    mask: Tensor | None = None,
    modulate: Modulate = None,
) -> Tensor:
    r"""Batch normalization of each channel over the batch and all positions, with residual, activation and mask.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \epsilon}} \cdot
              \mathrm{weight} + \mathrm{bias} + \mathrm{residual}\Big)

    Training: mean and the biased variance are the batch's, and the running statistics, if given, move in place:
    ``running = (1 - momentum) * running + momentum * new``, the new variance unbiased, m/(m-1) times the biased one.
    Evaluation: mean and variance are the running ones.

    Args:
        input: (N, C, *), real floating point.
        running_mean, running_var: (C,), or None in training. Written in place; they keep their own dtype.
        weight, bias: (C,) or None (1 and 0).
        training: use and track the batch's statistics.
        momentum: the weight of the new value.
        eps: added to the variance, inside the square root.
        residual: input's shape; added before the activation.
        activation: None, a name in torch.nn.functional, or a module.
        mask: bool, (N, *) or (N, 1, *), True = a real value. The statistics are those of the real values; outputs
            under the mask are zero, whatever the activation, and no gradient passes there.
        modulate: (scale, shift): scale * norm(x) + shift, after weight and bias and before the residual; each a
            floating-point tensor (N, C), or of the input's rank that broadcasts to it, or None. docs/modulate.md.

    Returns:
        The input's shape, dtype and memory format. Saved for the backward: the input, the statistics and, with a
        residual, one bit an element (relu) or the residual (smooth activations).

    Differences from torch: statistics are exact at mean >> std in every layout; derivatives of every order are right;
    a batch that is empty or not finite moves no statistic (with a RuntimeWarning if not finite).

    Raises:
        ValueError, RuntimeError, NotImplementedError: as torch.nn.functional.batch_norm, with its texts.

    Reference: Ioffe & Szegedy (2015), Batch Normalization. https://arxiv.org/abs/1502.03167
    """
    statistics = running_of(running_mean, running_var, training, momentum)
    if input.dim() == 1 and input.numel() == 0:
        return input.clone()  # torch accepts an empty vector
    return run(
        BatchNormSpec(resolve(activation), statistics, training, eps), input, weight, bias, residual, mask, modulate
    )


def running_of(
    running_mean: Tensor | None, running_var: Tensor | None, training: bool, momentum: float
) -> Running | None:
    """The running statistics of a functional call; RuntimeError when evaluation lacks them, with torch's text."""
    _shapes.verify_momentum("batch_norm", momentum)
    if running_mean is not None and running_var is not None:
        return Running(running_mean, running_var, None, momentum)
    if not training:
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"{missing} must be defined in evaluation mode")
    return None


@dataclass(slots=True, eq=False)
class BatchNormSpec(NormSpec):
    """One batch norm. training: normalize by the batch's statistics and move the running ones, if given.

    With `small_batch="running"` a batch of one value per channel uses the running statistics and moves none.
    """

    running: Running | None
    training: bool
    eps: float
    small_batch: str = "error"

    name: ClassVar[str] = "batch_norm"
    has_triton: ClassVar[bool] = True

    def in_core(self, input: Tensor, weight: Maybe, bias: Maybe, residual: Maybe) -> Maybe:
        """By the batch's channels, or with given statistics."""
        activation = self.activation
        if self.eps <= 0.0 or activation.code not in native.FUSED_ACTIVATIONS:
            return None
        return apply_in_core(
            input, weight, bias, residual, self, self.running, BATCH, 0, self.training, self.eps, activation.code,
            activation.param,
        )  # fmt: skip

    def verified(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """The operands, checked; mask (N, 1, *). A single value per channel may be normalized by the running ones."""
        input, mask = operands.input, operands.mask
        if self.training and is_single(input, mask):
            if self.small_batch != "running" or self.running is None:
                raise ValueError(_shapes.ONE_VALUE.format(input.size()))
            given = BatchNormSpec(self.activation, self.running, False, self.eps)
            return given.verified(operands)
        operands = checked(self, operands)
        residual = _shapes.fitting_residual(operands.residual, input)
        mask = _shapes.optional_channel_mask(mask, input)
        return self, _operands.verified(operands, widen("batch_norm", input), residual, mask)

    def buffers(self) -> tuple[Tensor, ...]:
        """The running mean and variance."""
        return () if self.running is None else (self.running.mean, self.running.var)

    def why_not_native(self, operands: Operands) -> str | None:
        """The native kernels take masks."""
        return None

    def why_not_operator(self, kernel: ModuleType, operands: Operands) -> str | None:
        """By given statistics batch norm is elementwise."""
        if operands.mask is not None and kernel is native:
            return "a mask is given"
        return None if self.training else "evaluation: the compiler fuses it with what is around it"

    def why_not_exported(self) -> str | None:
        """PyTorch's batch norm moves by a momentum alone."""
        cumulative = self.training and self.running is not None and self.running.momentum is None
        return "PyTorch's batch norm knows no cumulative average (momentum=None)" if cumulative else None

    def why_not_affine(self, operands: Operands) -> str | None:
        """Given statistics are numbers of a plane like any other; those of a batch are found first."""
        if self.training and self.name != "batch_norm":
            return f"{self.name} has kernels with a weight per channel alone"
        if self.training and torch.compiler.is_compiling():
            return "the operator of a compiled graph has a weight per channel"
        return planes.why_not(operands, self.activation)

    def as_affine(self, operands: Operands) -> tuple[NormSpec, Operands]:
        """A weight and a bias per plane. Evaluation: row-major N * C channels of one sample, statistics repeated."""
        if self.training:
            from .plane_batch_norm import PlaneBatchNormSpec  # here: few calls are of this kind, all would load it

            return PlaneBatchNormSpec(self.activation, self.running, self.eps), planes.with_affine(operands)
        mean, var = (given.repeat(planes.samples(operands)) for given in self.given())
        norm = BatchNormSpec(self.activation, Running(mean, var, None, None), False, self.eps)
        return norm, planes.as_planes(operands)

    def elements(self, input: Tensor) -> Elements | None:
        """By channels; those of a batch are found first."""
        return None if self.name != "batch_norm" else Elements(BATCH, 0, self.eps, not self.training)

    def element_statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The given ones, or the batch's."""
        if not self.training:
            return self.given()
        found = native.batch_norm_statistics(input)
        if self.running is not None:
            self.move(found, input)
        return found[0], found[1]

    def forward(self, kernel: ModuleType, operands: Operands, save: bool) -> tuple[Tensor, Saved | None]:
        """stats: (3, C)."""
        if not self.training:
            mean, var = self.given()
            return kernel.batch_norm_inference(operands, mean, var, self.activation, self.eps, save=save)
        moved = None
        if self.running is not None and kernel.MOVES_RUNNING:
            moved = running.for_kernel(self.running, operands.input)
        if moved is not None:
            return kernel.batch_norm_forward(operands, self.activation, self.eps, save=save, running=moved)
        y, saved = kernel.batch_norm_forward(operands, self.activation, self.eps, save=save)
        if self.running is not None:
            running.move_by_stats(self.running, doubles(saved.stats), native_masked.count_values(operands))
        return y, saved

    def given(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of an evaluation."""
        assert self.running is not None
        return self.running.mean, self.running.var

    def move(self, stats: Tensor, input: Tensor) -> None:
        """Move the running statistics by those of the batch `input`; the core asks for what it leaves to Python."""
        assert self.running is not None
        running.move_by_stats(self.running, stats, input.numel() // max(1, input.shape[1]))

    def backward(self, kernel: ModuleType, dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
        """Of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        return kernel.batch_norm_backward(dy, operands, saved, self.activation, needs, training=self.training)

    def composed(self, operands: Operands, stats: Tensor | None = None) -> Tensor:
        """By differentiable operations."""
        if not self.training:
            mean, var = self.given() if stats is None else stats[:2]
            return composed.batch_norm_inference(operands, mean, var, self.activation, self.eps)
        y, moments = composed.batch_norm(operands, self.activation, self.eps)
        if stats is None and self.running is not None:
            running.move(self.running, moments)
        return y

    def exported(self, operands: Operands) -> Tensor:
        """By torch.nn.functional.batch_norm."""
        input, weight, bias, *_ = operands
        mean, var, factor = None, None, 0.0
        if self.running is not None:
            mean, var, batches, momentum, _ = self.running
            if self.training and batches is not None:
                batches.add_(1)
            factor = momentum if self.training and momentum is not None else 0.0
            weight, bias = (  # as ATen wants them; a cast that does nothing would be a step of the program
                p if p is None or p.dtype == mean.dtype else p.to(mean.dtype) for p in (weight, bias)
            )
        y = F.batch_norm(input, mean, var, weight, bias, self.training, factor, self.eps)
        return composed.add_and_activate(y, operands, self.activation)

    def operator(self, kernel: ModuleType, operands: Operands, activation: Activation) -> Tensor:
        """By one operator; the running statistics move outside of it."""
        operator = OPERATOR if kernel is native else TRITON_OPERATOR
        y, stats = operator(0, self.eps, activation, operands)
        if self.running is not None:
            count = _shapes.values_per_channel(operands.input.shape) if operands.mask is None else stats[3].long()
            running.move(self.running, Moments.of_stats(count, stats[0], stats[1]))
        return y

    def for_recompute(self, kernel: ModuleType, operands: Operands, stats: Tensor) -> NormSpec | None:
        """By the statistics as given: one pass over memory, and the native kernels make the same constants from them.

        Not PyTorch's; and the moments of a masked batch are made of more values than the mask keeps.
        """
        if self.training and (kernel is not native or operands.mask is not None):
            return replace(self, running=None)
        return BatchNormSpec(self.activation, Running(stats[0], stats[1], None, None), False, self.eps)


def checked(norm: BatchNormSpec, operands: Operands) -> Operands:
    """The operands with weight and bias (C,), which torch takes in any shape of C elements; torch's errors for what no
    norm over the batch can take. Running statistics: (C,)."""
    input, weight, bias, *_ = operands
    mean, var = (None, None) if norm.running is None else (norm.running.mean, norm.running.var)
    _shapes.verify_number(norm.name, "eps", norm.eps)
    _shapes.verify_eps(norm.eps, norm.training)
    _shapes.verify_per_channel(input.size(1), running_mean=mean, running_var=var, weight=weight, bias=bias)
    _shapes.verify_vectors(running_mean=mean, running_var=var)
    _dtypes.verify("batch_norm", input, weight, bias)
    _dtypes.verify_statistics(mean, var)
    return _operands.under(operands, *(p if p is None or p.dim() == 1 else p.reshape(-1) for p in (weight, bias)))


def is_single(input: Tensor, mask: Tensor | None) -> bool:
    """Whether each channel has one single value. Where Python may not look at a mask's values, it counts as several."""
    if _shapes.values_per_channel(input.shape) == 1:
        return True
    if mask is None or not may_look(mask):
        return False
    return int(_shapes.channel_mask(mask, input).expand(input.shape[0], 1, *input.shape[2:]).sum()) == 1


OPERATOR = native_operator(
    "batch_norm",
    lambda size, eps, activation: BatchNormSpec(activation, None, True, eps),
    lambda input, size: input.shape[1],
)
TRITON_OPERATOR = triton_operator("batch_norm")
