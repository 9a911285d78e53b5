"""PyTorch's own kernels of layer and RMS norm, behind the same functions as the native ones.

A float16 or bfloat16 input is computed in float32 where the weight has another dtype, as PyTorch does on the CPU: its
CUDA kernels refuse the mixture.
"""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm_forward(
    input: Tensor, normalized_size: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """input: (*, D) with D = normalized_size over one or more axes. Returns the output and stats (3, rows) float64."""
    x, w, b = _rows(input, normalized_size, weight, bias)
    output, mean, rstd = torch.native_layer_norm(x, [normalized_size], w, b, eps)
    mean, rstd = mean.flatten().double(), rstd.flatten().double()
    return output.to(input.dtype).reshape(input.shape), torch.stack([mean, rstd.pow(-2) - eps, rstd])


def layer_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    *,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the input, weight and bias where needed, in the shapes of these."""
    x, w, b = _rows(input, normalized_size, weight, bias)
    dy = grad_output.reshape(x.shape).to(x.dtype)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, _, rstd = (s.unsqueeze(1).to(kind) for s in stats)
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy, x, [normalized_size], mean, rstd, w, b, [needs[0], needs[1] and w is not None, needs[2] and b is not None]
    )
    return _like(dx, input, needs[0]), _like(dweight, weight, needs[1]), _like(dbias, bias, needs[2])


def rms_norm_forward(input: Tensor, normalized_size: int, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """input: (*, D). Returns the output and stats (3, rows) float64: 0, mean of squares, rstd."""
    x, w, _ = _rows(input, normalized_size, weight, None)
    output, rstd = torch.ops.aten._fused_rms_norm(x, [normalized_size], w, eps)
    rstd = rstd.flatten().double()
    return output.to(input.dtype).reshape(input.shape), torch.stack([torch.zeros_like(rstd), rstd.pow(-2) - eps, rstd])


def rms_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_size: int,
    weight: Tensor | None,
    stats: Tensor,
    *,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the input and weight where needed, in the shapes of these."""
    x, w, _ = _rows(input, normalized_size, weight, None)
    dy = grad_output.reshape(x.shape).to(x.dtype)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    rstd = stats[2].unsqueeze(1).to(kind)
    if x.device.type == "cuda":
        dx, dweight = torch.ops.aten._fused_rms_norm_backward(
            dy, x, [normalized_size], rstd, w, [needs[0], needs[1] and w is not None]
        )
    else:  # PyTorch has the kernel for CUDA alone
        xhat, dxhat = x * rstd, dy if w is None else dy * w
        dx = rstd * (dxhat - xhat * (dxhat * xhat).mean(1, keepdim=True))
        dweight = (dy * xhat).sum(0)
    return _like(dx, input, needs[0]), _like(dweight, weight, needs[1])


def _rows(
    input: Tensor, size: int, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The input as (rows, D) and the parameters as (D,), all of one dtype that PyTorch's kernels keep statistics in."""
    half = input.dtype in (torch.float16, torch.bfloat16)
    mixed = any(p is not None and p.dtype != input.dtype for p in (weight, bias))
    # on the CPU, statistics of half inputs would be rounded to half
    kind = torch.float32 if half and (mixed or input.device.type == "cpu") else input.dtype
    rows = input.to(kind).reshape(-1, size).contiguous()
    flat = [None if p is None else p.to(kind).reshape(size) for p in (weight, bias)]
    return rows, flat[0], flat[1]


def _like(gradient: Tensor, tensor: Tensor | None, needed: bool) -> Tensor | None:
    return gradient.to(tensor.dtype).reshape(tensor.shape) if needed and tensor is not None else None
