"""PyTorch's own kernels of layer and RMS norm, behind the same functions as the native ones.

A float16 or bfloat16 input is computed in float32 where the weight has another dtype, as PyTorch does on the CPU: its
CUDA kernels refuse the mixture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._operands import Gradients, Needs, Operands, Saved
from .._precision import accumulator_dtype, wide_dtype
from .._torch import fused_rms_norm, fused_rms_norm_backward, reshaped_as_no_view


def layer_norm_forward(operands: Operands, size: int, eps: float, *, save: bool) -> tuple[Tensor, Saved]:
    """input: (*, D) with D = size over one or more axes; stats (3, rows) in the device's widest dtype."""
    input = operands.input
    x, w, b = _rows(operands, size)
    output, mean, rstd = torch.native_layer_norm(x, [size], w, b, eps)
    kind = wide_dtype(x.device)
    mean, rstd = mean.flatten().to(kind), rstd.flatten().to(kind)
    stats = torch.stack([mean, rstd.pow(-2) - eps, rstd])
    return _beside(output, input), Saved(stats)


def layer_norm_backward(dy: Tensor, operands: Operands, saved: Saved, size: int, needs: Needs) -> Gradients:
    """The first derivative of layer norm, in the operands' shapes."""
    x, w, b = _rows(operands, size)
    dy = dy.reshape(x.shape).to(x.dtype)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, _, rstd = (s.unsqueeze(1).to(kind) for s in saved.stats)
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy, x, [size], mean, rstd, w, b, [needs.input, needs.weight and w is not None, needs.bias and b is not None]
    )
    return Gradients(
        _like(dx, operands.input, needs.input),
        _like(dweight, operands.weight, needs.weight),
        _like(dbias, operands.bias, needs.bias),
    )


def rms_norm_forward(operands: Operands, size: int, eps: float, *, save: bool) -> tuple[Tensor, Saved]:
    """input: (*, D); stats (3, rows): 0, mean of squares, rstd."""
    input = operands.input
    x, w, _ = _rows(operands, size)
    if fused_rms_norm is None:
        rstd = (x.to(accumulator_dtype(x)).square().mean(1) + eps).rsqrt()
        output = (x * rstd.unsqueeze(1)).to(x.dtype) * (1 if w is None else w)
    else:
        output, rstd = fused_rms_norm(x, [size], w, eps)
        rstd = rstd.flatten().to(wide_dtype(x.device))
    stats = torch.stack([torch.zeros_like(rstd), rstd.pow(-2) - eps, rstd])
    return _beside(output, input), Saved(stats)


def rms_norm_backward(dy: Tensor, operands: Operands, saved: Saved, size: int, needs: Needs) -> Gradients:
    """The first derivative of RMS norm, in the operands' shapes."""
    x, w, _ = _rows(operands, size)
    dy = dy.reshape(x.shape).to(x.dtype)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    rstd = saved.stats[2].unsqueeze(1).to(kind)
    if x.device.type == "cuda" and fused_rms_norm_backward is not None:
        masks = [needs.input, needs.weight and w is not None]
        dx, dweight = fused_rms_norm_backward(dy, x, [size], rstd, w, masks)
    else:  # PyTorch has the kernel for CUDA alone
        xhat, dxhat = x * rstd, dy if w is None else dy * w
        dx = rstd * (dxhat - xhat * (dxhat * xhat).mean(1, keepdim=True))
        dweight = (dy * xhat).sum(0)
    return Gradients(_like(dx, operands.input, needs.input), _like(dweight, operands.weight, needs.weight))


def _rows(operands: Operands, size: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The input as (rows, D) and the parameters as (D,), all of one dtype that PyTorch's kernels keep statistics in."""
    input, weight, bias, *_ = operands
    half = input.dtype in (torch.float16, torch.bfloat16)
    mixed = any(p is not None and p.dtype != input.dtype for p in (weight, bias))
    # on the CPU, statistics of half inputs would be rounded to half
    kind = torch.float32 if half and (mixed or input.device.type == "cpu") else input.dtype
    rows = input.to(kind).reshape(input.numel() // size if size else 0, size).contiguous()
    flat = [None if p is None else p.to(kind).reshape(size) for p in (weight, bias)]
    return rows, flat[0], flat[1]


def _beside(rows: Tensor, input: Tensor) -> Tensor:
    """An output (rows, D) in the input's shape and dtype; no view: autograd lets nobody change a Function's views."""
    return reshaped_as_no_view(rows.to(input.dtype), input.shape)


def _like(gradient: Tensor, tensor: Tensor | None, needed: bool) -> Tensor | None:
    return gradient.to(tensor.dtype).reshape(tensor.shape) if needed and tensor is not None else None
