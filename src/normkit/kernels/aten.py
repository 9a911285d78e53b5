"""PyTorch's own kernels, behind the same functions as the native ones.

Used on CUDA, and on the CPU when asked for. They take neither residual nor activation nor mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._activation import Activation
from .._operands import Gradients, Needs, Operands, Saved, in_dtype_of
from .._precision import accumulator_dtype, wide_dtype
from .._torch import batch_norm_without_running
from .aten_rows import layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward

__all__ = [
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "group_norm_backward",
    "group_norm_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "rms_norm_backward",
    "rms_norm_forward",
]

FUSED_ACTIVATIONS: frozenset[int] = frozenset({0})
FUSES_RESIDUAL = False
MOVES_RUNNING = False


def batch_norm_forward(operands: Operands, activation: Activation, eps: float, *, save: bool) -> tuple[Tensor, Saved]:
    """Training forward; stats (3, C) in the device's widest dtype: mean, biased var, rstd."""
    input, weight, bias = operands.input, _upcast(operands.weight, operands), _upcast(operands.bias, operands)
    if not input.numel():
        return _without_values(input, input.shape[1], eps)
    output, mean, rstd = batch_norm_without_running(input, _wide(weight, input), bias, True, 0.0, eps)
    return output, Saved(_stats(mean, rstd, eps))


def _stats(mean: Tensor, rstd: Tensor, eps: float) -> Tensor:
    """(3, sets): mean, biased variance, rstd."""
    kind = wide_dtype(mean.device)
    mean, rstd = mean.flatten().to(kind), rstd.flatten().to(kind)
    return torch.stack([mean, rstd.pow(-2) - eps, rstd])


def _without_values(input: Tensor, sets: int, eps: float) -> tuple[Tensor, Saved]:
    """What an empty input gives, which PyTorch's kernels refuse, or answer with NaN for the weight's gradient."""
    zeros = input.new_zeros(sets, dtype=wide_dtype(input.device))
    return torch.empty_like(input), Saved(torch.stack([zeros, zeros, (zeros + eps).rsqrt()]))


def batch_norm_inference(
    operands: Operands, mean: Tensor, var: Tensor, activation: Activation, eps: float, *, save: bool
) -> tuple[Tensor, Saved | None]:
    """Evaluation forward under the given statistics."""
    kind, weight, bias = (
        _statistics_dtype(operands.input),
        *(_upcast(p, operands) for p in (operands.weight, operands.bias)),
    )
    input = operands.input
    output = F.batch_norm(input, mean.to(kind), var.to(kind), weight, bias, eps=eps) if input.numel() else input.clone()
    if not save:
        return output, None
    mean, var = (given.to(wide_dtype(input.device)) for given in (mean, var))
    return output, Saved(torch.stack([mean, var, torch.rsqrt(var + eps)]))


def batch_norm_backward(
    dy: Tensor, operands: Operands, saved: Saved, activation: Activation, needs: Needs, *, training: bool
) -> Gradients:
    """training=False: the statistics are constants."""
    if not training or not operands.input.numel():
        return _backward_by_given(dy, operands, saved, needs)
    input, weight = operands.input, _upcast(operands.weight, operands)
    mean, var, rstd = (row.to(_statistics_dtype(input)) for row in saved.stats)
    dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        dy, input, weight, mean, var, mean, rstd, True, 0.0, [needs.input, needs.weight, needs.bias]
    )
    return _gradients(operands, needs, dx, dweight, dbias)


def _backward_by_given(dy: Tensor, operands: Operands, saved: Saved, needs: Needs) -> Gradients:
    input, weight, *_ = operands
    wide = accumulator_dtype(input)
    mean, _, rstd = saved.stats.to(wide)
    shape = [1, -1, *[1] * (input.dim() - 2)]
    dims = [0, *range(2, input.dim())]
    scale = rstd if weight is None else rstd * weight
    dx = dy * scale.reshape(shape).to(_statistics_dtype(input)) if needs.input else None
    dweight = None
    if needs.weight:
        dweight = (dy * ((input.to(wide) - mean.reshape(shape)) * rstd.reshape(shape))).sum(dims)
    return _gradients(operands, needs, dx, dweight, dy.to(wide).sum(dims) if needs.bias else None)


def _gradients(
    operands: Operands, needs: Needs, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None
) -> Gradients:
    """Those that are needed, in their operands' dtypes."""
    return Gradients(*map(in_dtype_of, operands, (dx, dweight, dbias), needs))


def _statistics_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _upcast(parameter: Tensor | None, operands: Operands) -> Tensor | None:
    # contiguous: PyTorch's backward reads a strided weight as if it were
    return None if parameter is None else parameter.to(_statistics_dtype(operands.input)).contiguous()


def _wide(weight: Tensor | None, input: Tensor) -> Tensor | None:
    """The weight, of ones where none is given: of its dtype PyTorch's CPU kernels make the statistics, else of a half
    input's own, which running statistics would lose digits by."""
    if weight is None and input.is_cpu and input.dtype in (torch.float16, torch.bfloat16):
        return input.new_ones(input.shape[1], dtype=torch.float32)
    return weight


def group_norm_forward(
    operands: Operands, num_groups: int, activation: Activation, eps: float, *, save: bool
) -> tuple[Tensor, Saved]:
    """stats (3, N*G): mean, biased var, rstd."""
    input, weight, bias = operands.input, _upcast(operands.weight, operands), _upcast(operands.bias, operands)
    n, c, positions = input.shape[0], input.shape[1], math.prod(input.shape[2:])
    if not input.numel():
        return _without_values(input, n * num_groups, eps)
    weight = _wide(weight, input)
    output, mean, rstd = torch.native_group_norm(_dense(input), weight, bias, n, c, positions, num_groups, eps)
    return output, Saved(_stats(mean, rstd, eps))


def _dense(input: Tensor) -> Tensor:
    """In an order of memory that PyTorch's kernel takes: row-major, on the CPU channels last too."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    if last is None or not input.is_cpu:
        return input.contiguous()
    # its very strides: where axes of size 1 leave a choice, the kernel takes some for row-major and then refuses them
    strides = torch.empty_like(input, device="meta", memory_format=last).stride()
    return input if input.stride() == strides else input.contiguous()


def group_norm_backward(
    dy: Tensor, operands: Operands, saved: Saved, num_groups: int, activation: Activation, needs: Needs
) -> Gradients:
    """The first derivative of group norm."""
    input, weight = operands.input, _upcast(operands.weight, operands)
    n, c, positions = input.shape[0], input.shape[1], math.prod(input.shape[2:])
    if not input.numel():
        zeros = dy.new_zeros(c)
        return _gradients(operands, needs, torch.zeros_like(input), zeros, zeros)
    mean, _, rstd = (row.reshape(n, num_groups).to(_statistics_dtype(input)) for row in saved.stats)
    # the kernel fails where the bias's gradient is asked for and there is no weight
    dx, dweight, _ = torch.ops.aten.native_group_norm_backward(
        dy.contiguous(), input.contiguous(), mean, rstd, weight, n, c, positions, num_groups,
        [needs.input, needs.weight, False],
    )  # fmt: skip
    dbias = dy.to(accumulator_dtype(input)).sum([0, *range(2, dy.dim())]) if needs.bias else None
    return _gradients(operands, needs, dx, dweight, dbias)
