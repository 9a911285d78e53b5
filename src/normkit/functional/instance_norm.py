"""Instance normalization as a function: statistics of each channel of each sample, and their running averages.

It is group normalization with C groups (the fused kernels are the same); with running statistics, evaluation is that
of batch normalization.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _shapes
from .._activation import NONE, Activation, resolve
from ..kernels import aten, composed_rows, native
from ..moments import Moments
from . import _dtypes, _running
from ._choose import choose, is_eager, is_exporting
from ._fused import Call, Forwarded, Gradients, Needs, Operands, after, run, run_channels
from ._running import Running
from .batch_norm import apply as apply_batch_norm
from .group_norm import OPAQUE as GROUP_NORM

KERNELS: dict[str, ModuleType] = {"native": native, "aten": aten}


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

    Returns:
        The input's shape, dtype and memory format (torch loses channels_last).

    Raises:
        ValueError, RuntimeError, NotImplementedError: as torch.nn.functional.instance_norm, with its texts.

    Reference: Ulyanov, Vedaldi & Lempitsky (2016), Instance Normalization. https://arxiv.org/abs/1607.08022
    """
    if use_input_stats:
        _shapes.verify_more_than_one_position(input.size())
    running = None
    if running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, None, momentum)
    elif not use_input_stats:
        raise RuntimeError("Expected running_mean and running_var to be defined when use_input_stats is false")
    elif running_mean is not None or running_var is not None:
        raise ValueError("running_mean and running_var must either both be None or neither be None")
    return apply(
        input, running, weight, bias, use_input_stats, eps, residual=residual, activation=resolve(activation), mask=mask
    )


def apply(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
) -> Tensor:
    """What :func:`instance_norm` and the layers share."""
    if mask is None and use_input_stats and is_eager():
        buffers = (None, None) if running is None else running[:2]
        count = native.ready(input, residual, weight, bias, *buffers)  # the common call: one look at all tensors
        if count > input.shape[0]:
            call = InstanceNormCall(native, activation, running, eps)
            return run_channels(call, running, input.shape[1], True, eps, input, weight, bias, residual)
    _verify(input, running, weight, bias, residual)
    if not use_input_stats:
        return apply_batch_norm(
            input, running, weight, bias, False, eps, residual=residual, activation=activation, mask=mask
        )
    _shapes.verify_more_than_one_position(input.size())
    if mask is not None:
        mask = _shapes.channel_mask(mask, input)
    if input.numel() == 0:
        running = None  # an empty batch moves nothing and is not counted
    buffers = (None, None) if running is None else (running.mean, running.var)
    path, _ = choose("group_norm", input, activation, mask, (residual, weight, bias, *buffers))
    if path == "aten" and is_exporting() and (running is None or running.momentum is not None):
        return _exported(input, running, weight, bias, eps, residual, activation)
    if path == "composed" or is_exporting() or input.shape[1] == 0:
        y, moments = composed_rows.instance_norm(
            input, weight, bias, eps, residual=residual, activation=activation, mask=mask
        )
        if running is not None:
            move(running, moments)
        return y
    return run(InstanceNormCall(KERNELS[path], activation, running, eps), input, weight, bias, residual)


def move(running: Running, moments: Moments) -> None:
    """Move the running statistics by the averages over samples. moments: (N, C), a count of values for each sample."""
    count = moments.count
    mean, var = moments.mean.detach(), moments.m2.detach() / (count - 1)
    if isinstance(count, int):
        _running.move_by_average(running, mean.mean(0), var.mean(0), count, mean.shape[0])
        return
    enough = count >= 2
    samples = enough.sum(0)
    mean = torch.where(enough, mean, 0).sum(0) / samples.clamp(min=1)
    var = torch.where(enough, var, 0).sum(0) / samples.clamp(min=1)
    _running.move_by_average(running, mean, var, count.amax(), samples)


def _verify(
    input: Tensor, running: Running | None, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> None:
    if input.dim() < 2:
        raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
    n, c = input.shape[:2]
    mean, var = (None, None) if running is None else (running.mean, running.var)
    for name, tensor in (("running_mean", mean), ("running_var", var), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.numel() != c:
            # torch computes on (1, N*C, *) and its text counts so
            raise RuntimeError(f"{name} should contain {n * c} elements not {n * tensor.numel()}")
    _dtypes.verify("batch_norm", input, weight, bias)
    _shapes.verify_residual(residual, input)


def _exported(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Plain PyTorch operations for programs that must run without normkit."""
    mean, var, factor = None, None, 0.0
    if running is not None and running.momentum is not None:
        mean, var, factor = running.mean, running.var, running.momentum
        if running.batches is not None:
            running.batches.add_(1)
    return after(F.instance_norm(input, mean, var, weight, bias, True, factor, eps), residual, activation)


@dataclass(slots=True, eq=False)
class InstanceNormCall(Call):
    """One instance norm on a fused kernel of group norm, with C groups; moves the running statistics."""

    running: Running | None
    eps: float

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (3, N*C) float64: mean, biased var, rstd; bits)."""
        input = of.input
        y, stats, bits = self.kernel.group_norm_forward(
            input, input.shape[1], *of[1:], self.activation.code, self.activation.param, self.eps,
            save_for_backward=save or self.running is not None,
        )  # fmt: skip
        if self.running is not None:
            self.move(stats, input)
        if y.stride() != input.stride() and input.movedim(1, -1).is_contiguous():
            y = torch.empty_like(input).copy_(y)  # PyTorch's kernel loses channels_last on some devices
        return y, stats, bits

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        return self.kernel.group_norm_backward(
            dy, of.input, of.input.shape[1], *of[1:], bits, stats, self.activation.code,
            self.activation.param, needs=needs,
        )  # fmt: skip

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations."""
        input, weight, bias, residual = of
        return composed_rows.instance_norm(input, weight, bias, self.eps, residual=residual, activation=activation)[0]

    def compiled(self, of: Operands) -> Tensor:
        """The same as one opaque operator of torch.compile."""
        y, stats = GROUP_NORM(of.input.shape[1], self.eps, self.activation, *of)
        if self.running is not None:
            self.move(stats, of.input)
        return y

    def again(self, stats: Tensor) -> Call:
        """By the same samples again."""
        return replace(self, running=None)

    def move(self, stats: Tensor, input: Tensor) -> None:
        """Move the running statistics by those of the batch `input`. stats: (3, N*C)."""
        assert self.running is not None
        count = _shapes.product(input.shape[2:])
        mean, var, _ = stats.reshape(3, *input.shape[:2])
        move(self.running, Moments(count, mean, var * count))
