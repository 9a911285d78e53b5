"""Batch normalization as a function: check the arguments, choose a path, move the running statistics.

The way of the data: `batch_norm` (public, torch's signature) or a layer -> `apply` -> one of
    native, aten   a fused kernel under `_fused.Fused`, whose higher derivatives are the composed operations
    composed       differentiable torch operations
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _shapes
from .._activation import NONE, Activation, resolve
from ..kernels import aten, composed, native
from ..moments import Moments
from . import _dtypes, _running
from ._choose import choose, is_eager, is_exporting, is_transformed
from ._fused import Call, Forwarded, Gradients, Needs, Operands, after, run, run_channels, run_masked
from ._masked import MaskedBatchNormCall
from ._opaque import Opaque
from ._running import Running

KERNELS: dict[str, ModuleType] = {"native": native, "aten": aten}


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

    Returns:
        The input's shape, dtype and memory format. Saved for the backward: the input, the statistics and, with a
        residual, one bit an element (relu) or the residual (smooth activations).

    Differences from torch: statistics are exact at mean >> std in every layout; derivatives of every order are right;
    a batch that is empty or not finite moves no statistic (with a RuntimeWarning if not finite).

    Raises:
        ValueError, RuntimeError, NotImplementedError: as torch.nn.functional.batch_norm, with its texts.

    Reference: Ioffe & Szegedy (2015), Batch Normalization. https://arxiv.org/abs/1502.03167
    """
    running = running_of(running_mean, running_var, training, momentum)
    return apply(
        input, running, weight, bias, training, eps, residual=residual, activation=resolve(activation), mask=mask
    )


def running_of(
    running_mean: Tensor | None, running_var: Tensor | None, training: bool, momentum: float
) -> Running | None:
    """The running statistics of a functional call; RuntimeError when evaluation lacks them, with torch's text."""
    if running_mean is not None and running_var is not None:
        return Running(running_mean, running_var, None, momentum)
    if not training:
        missing = "running_mean" if running_mean is None else "running_var"
        raise RuntimeError(f"{missing} must be defined in evaluation mode")
    return None


def apply(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    *,
    residual: Tensor | None = None,
    activation: Activation = NONE,
    mask: Tensor | None = None,
    small_batch: str = "error",
) -> Tensor:
    """What :func:`batch_norm` and the layers share. `training`: normalize with the batch's statistics.

    With `small_batch="running"` a batch of one value per channel uses the running statistics and moves none.
    """
    mean, var = (None, None) if running is None else running[:2]
    if mask is None and eps > 0.0 and is_eager():
        # The common call: one look at all tensors. Whatever it does not know is looked at closely below.
        count = native.ready(input, residual, weight, bias, mean, var)
        if count > 1 or (count and not training):
            call = BatchNormCall(native, activation, running, training, eps)
            return run_channels(call, running, 0, training, eps, input, weight, bias, residual)
    if input.dim() == 1 and input.numel() == 0:
        return input.clone()  # torch accepts an empty vector
    training, mask = prepare(input, running, weight, bias, training, eps, residual, mask, small_batch)
    path, _ = choose("batch_norm", input, activation, mask, (residual, weight, bias, mean, var))
    if path == "aten" and is_exporting() and not _is_cumulative(running, training):
        return _exported(input, running, weight, bias, training, eps, residual, activation)
    # compiled evaluation: inductor fuses it
    if path == "composed" or is_exporting() or (torch.compiler.is_compiling() and not training):
        return _composed(input, running, weight, bias, training, eps, residual, activation, mask)
    if mask is not None and input.numel():
        masked = MaskedBatchNormCall(native, activation, running, training, eps, mask)
        return run_masked(masked, input, weight, bias, residual, mask)
    call = BatchNormCall(KERNELS[path], activation, running, training, eps)
    return run(call, input, weight, bias, residual)


def prepare(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    residual: Tensor | None,
    mask: Tensor | None,
    small_batch: str = "error",
) -> tuple[bool, Tensor | None]:
    """Check the arguments of a norm over the batch: (whether the batch's statistics are used, mask (N, 1, *)).

    Raises:
        ValueError, RuntimeError, NotImplementedError: what :func:`batch_norm` raises.
    """
    if training and _is_single(input, mask):
        if small_batch != "running" or running is None:
            raise ValueError(_shapes.ONE_VALUE.format(input.size()))
        training = False
    verify(input, running, weight, bias, training, eps, residual)
    return training, None if mask is None else _shapes.channel_mask(mask, input)


def _is_single(input: Tensor, mask: Tensor | None) -> bool:
    """Whether each channel has one single value. Where Python may not look at a mask's values, it counts as several."""
    if _shapes.values_per_channel(input.shape) == 1:
        return True
    if mask is None or torch.compiler.is_compiling() or is_transformed() or mask.device.type != "cpu":
        return False
    kept = _shapes.channel_mask(mask, input).expand(input.shape[0], 1, *input.shape[2:])
    return int(kept.sum()) == 1


def verify(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    residual: Tensor | None,
) -> None:
    """Raise torch's errors for what no norm over the batch can take. weight, bias, running statistics: (C,)."""
    mean, var = (None, None) if running is None else (running.mean, running.var)
    _shapes.verify_eps(eps, training)
    _shapes.verify_per_channel(input.size(1), running_mean=mean, running_var=var, weight=weight, bias=bias)
    _dtypes.verify("batch_norm", input, weight, bias)
    _shapes.verify_residual(residual, input)


def _is_cumulative(running: Running | None, training: bool) -> bool:
    """Whether the running statistics move by the cumulative average, which PyTorch's own batch norm does not know."""
    return training and running is not None and running.momentum is None


def _composed(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    residual: Tensor | None,
    activation: Activation,
    mask: Tensor | None,
) -> Tensor:
    if not training:
        assert running is not None
        return composed.batch_norm_inference(
            input, running.mean, running.var, weight, bias, eps, residual=residual, activation=activation, mask=mask
        )
    y, moments = composed.batch_norm(input, weight, bias, eps, residual=residual, activation=activation, mask=mask)
    if running is not None:
        _running.move(running, moments)
    return y


def _exported(
    input: Tensor,
    running: Running | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    residual: Tensor | None,
    activation: Activation,
) -> Tensor:
    """Plain PyTorch operations for programs that must run without normkit."""
    mean, var, factor = None, None, 0.0
    if running is not None:
        mean, var = running.mean, running.var
        if training and running.batches is not None:
            running.batches.add_(1)
        factor = running.momentum if training and running.momentum is not None else 0.0
    y = F.batch_norm(input, mean, var, _upcast(weight, mean), _upcast(bias, mean), training, factor, eps)
    return after(y, residual, activation)


def _upcast(parameter: Tensor | None, statistic: Tensor | None) -> Tensor | None:
    """ATen wants parameters and statistics of one dtype."""
    return parameter if parameter is None or statistic is None else parameter.to(statistic.dtype)


@dataclass(slots=True, eq=False)
class BatchNormCall(Call):
    """One batch norm on a fused kernel; moves the running statistics in its forward."""

    running: Running | None
    training: bool
    eps: float

    def forward(self, of: Operands, save: bool) -> Forwarded:
        """(output, stats (3, C) float64: mean, biased var, rstd; bits)."""
        running, code, param = self.running, self.activation.code, self.activation.param
        if not self.training:
            assert running is not None
            return self.kernel.batch_norm_inference(
                of.input, running.mean, running.var, *of[1:], code, param, self.eps, save_for_backward=save
            )
        y, stats, bits = self.kernel.batch_norm_forward(*of, code, param, self.eps, save_for_backward=save)
        if running is not None:
            self.move(stats, of.input)
        return y, stats, bits

    def move(self, stats: Tensor, input: Tensor) -> None:
        """Move the running statistics by those of the batch `input`; the core asks for what it leaves to Python."""
        assert self.running is not None
        _running.move_native(self.running, stats, input.numel() // max(1, input.shape[1]))

    def backward(self, dy: Tensor, of: Operands, stats: Tensor, bits: Tensor | None, needs: Needs) -> Gradients:
        """Gradients of input (N, C, *), weight (C,), bias (C,), residual (N, C, *)."""
        code, param = self.activation.code, self.activation.param
        return self.kernel.batch_norm_backward(dy, *of, bits, stats, code, param, training=self.training, needs=needs)

    def composed(self, of: Operands, activation: Activation, stats: Tensor) -> Tensor:
        """The same forward as differentiable operations."""
        input, weight, bias, residual = of
        if self.training:
            return composed.batch_norm(input, weight, bias, self.eps, residual=residual, activation=activation)[0]
        return composed.batch_norm_inference(
            input, stats[0], stats[1], weight, bias, self.eps, residual=residual, activation=activation
        )

    def compiled(self, of: Operands) -> Tensor:
        """The same as one opaque operator of torch.compile."""
        y, stats = OPAQUE(0, self.eps, self.activation, *of)
        if self.running is not None:
            count = _shapes.values_per_channel(of.input.shape)
            _running.move(self.running, Moments(count, stats[0], stats[1] * count))
        return y

    def again(self, stats: Tensor) -> Call:
        """By the statistics as given: one walk, and the native kernels make the same constants from them."""
        if self.training and self.kernel is not native:
            return replace(self, running=None)
        return replace(self, training=False, running=Running(stats[0], stats[1], None, None))


OPAQUE = Opaque(
    "batch_norm",
    lambda size, eps, activation: BatchNormCall(native, activation, None, True, eps),
    lambda input, size: input.shape[1],
)
