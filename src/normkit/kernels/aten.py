"""PyTorch's own kernels, behind the same functions as the native ones.

Used on CUDA, and on the CPU when asked for. They take neither residual nor activation nor mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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


def batch_norm_forward(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: None,
    activation: int,
    param: float,
    eps: float,
    *,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, None]:
    """Training forward. Returns the output, stats (3, C) float64: mean, biased var, rstd, and no bits."""
    weight, bias = _upcast(weight, input), _upcast(bias, input)
    output, mean, rstd = torch.ops.aten._native_batch_norm_legit.no_stats(input, weight, bias, True, 0.0, eps)
    rstd = rstd.double()
    return output, torch.stack([mean.double(), rstd.pow(-2) - eps, rstd]), None


def batch_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: None,
    bits: None,
    stats: Tensor,
    activation: int,
    param: float,
    *,
    training: bool,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """Gradients of the input, weight and bias where needed."""
    mean, var, rstd = stats
    kind = _statistics_dtype(input)
    weight = _upcast(weight, input)
    masks = [needs[0], needs[1] and weight is not None, needs[2]]
    if training:
        mean, var, rstd = mean.to(kind), var.to(kind), rstd.to(kind)
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            grad_output, input, weight, mean, var, mean, rstd, True, 0.0, masks
        )
    else:
        dx, dweight, dbias = _backward_inference(grad_output, input, weight, mean, rstd, masks)
    return (dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None, None)


def batch_norm_inference(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: None,
    activation: int,
    param: float,
    eps: float,
    *,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor | None, None]:
    """Evaluation forward under the given statistics."""
    kind = _statistics_dtype(input)
    mean, variance = running_mean.to(kind), running_var.to(kind)
    output = F.batch_norm(input, mean, variance, _upcast(weight, input), _upcast(bias, input), eps=eps)
    if not save_for_backward:
        return output, None, None
    var = running_var.double()
    return output, torch.stack([running_mean.double(), var, torch.rsqrt(var + eps)]), None


def _backward_inference(
    grad_output: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, masks: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    shape = [1, -1, *[1] * (input.dim() - 2)]
    dims = [0, *range(2, input.dim())]
    scale = rstd if weight is None else rstd * weight
    dx = (grad_output * scale.reshape(shape).to(_statistics_dtype(input))).to(input.dtype) if masks[0] else None
    centred = (input.double() - mean.reshape(shape)) * rstd.reshape(shape) if masks[1] else None
    dweight = (grad_output * centred).sum(dims) if centred is not None else None
    return dx, dweight, grad_output.double().sum(dims) if masks[2] else None


def _statistics_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _upcast(parameter: Tensor | None, input: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(_statistics_dtype(input))


def group_norm_forward(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: None,
    activation: int,
    param: float,
    eps: float,
    *,
    save_for_backward: bool,
) -> tuple[Tensor, Tensor, None]:
    """Returns the output, stats (3, N*G) float64: mean, biased var, rstd, and no bits."""
    n, c, positions = input.shape[0], input.shape[1], math.prod(input.shape[2:])
    output, mean, rstd = torch.native_group_norm(
        input, _upcast(weight, input), _upcast(bias, input), n, c, positions, num_groups, eps
    )
    mean, rstd = mean.flatten().double(), rstd.flatten().double()
    return output, torch.stack([mean, rstd.pow(-2) - eps, rstd]), None


def group_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: None,
    bits: None,
    stats: Tensor,
    activation: int,
    param: float,
    *,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """Gradients of the input, weight and bias where needed."""
    n, c, positions = input.shape[0], input.shape[1], math.prod(input.shape[2:])
    kind = _statistics_dtype(input)
    mean, _, rstd = (s.reshape(n, num_groups).to(kind) for s in stats)
    dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
        grad_output.contiguous(),
        input.contiguous(),
        mean,
        rstd,
        _upcast(weight, input),
        n,
        c,
        positions,
        num_groups,
        needs[:3],
    )
    return (dx if needs[0] else None, dweight if needs[1] else None, dbias if needs[2] else None, None)
