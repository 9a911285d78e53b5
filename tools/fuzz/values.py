"""Values and memory layouts of the tensors of a case. A finding's script holds the functions of this file that it uses.

Rules: values are drawn in float64 from a seed and rounded once; a finite kind stays finite in every dtype. A layout
keeps the values, but for the ones whose elements share memory (`expanded`, `overlapping`).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Kinds whose spread is near 1 and whose mean is near 0: loose comparisons (lossy hooks, other kernels) need them.
PLAIN = frozenset({"normal", "param", "ones", "var", "arange"})


def values(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Values of one kind, contiguous."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    n = x.numel()
    if kind == "param":  # away from 0, one of them negative
        x = 0.5 + torch.rand(shape, generator=g, dtype=torch.float64)
        x.view(-1)[:1] *= -1
    elif kind == "var":
        x = 0.5 + torch.rand(shape, generator=g, dtype=torch.float64)
    elif kind == "arange":
        x = (torch.arange(n, dtype=torch.float64).reshape(shape) * 7 % 5) - 2
    elif kind in ("ones", "zeros", "constant"):
        x = torch.full(shape, {"ones": 1.0, "zeros": 0.0, "constant": 0.1}[kind], dtype=torch.float64)
    elif kind.startswith("mean"):  # mean1e4: mean / std = 1e4
        x = x + float(kind[4:])
    elif kind.startswith("scale"):  # scale1e30
        x = x * float(kind[5:])
    elif kind == "constant_channel" and x.dim() > 1:
        x[:, :1] = 0.1
    elif kind == "outlier" and n:
        x.view(-1)[n // 2] = 1e4
    elif kind == "samples" and n:  # each sample in a scale of its own
        x = x * torch.logspace(-6, 6, x.shape[0], dtype=torch.float64).reshape(-1, *[1] * (x.dim() - 1))
    elif kind == "negative":
        x = -x.abs()
    if dtype.is_floating_point:
        top = 4096.0 if dtype == torch.float16 else torch.finfo(dtype).max  # room for what follows
        x = x.clamp(-top, top)
    for name, value in (("nan", torch.nan), ("inf", torch.inf), ("minus_inf", -torch.inf)):
        if kind == name and n:
            x.view(-1)[n // 2] = value
    return x.to(dtype)


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x


def transposed(x: Tensor) -> Tensor:
    """Dense, in no memory format that has a name."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def strided(x: Tensor) -> Tensor:
    """Every second element of a wider tensor."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 77, dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def inner(x: Tensor) -> Tensor:
    """The inside of a tensor that is larger on every axis."""
    wide = torch.full([s + 2 for s in x.shape], 77, dtype=x.dtype)
    cut = wide[tuple(slice(1, s + 1) for s in x.shape)]
    return cut.copy_(x)


def offset(x: Tensor) -> Tensor:
    """Contiguous, with a storage offset that breaks the alignment of vectors."""
    flat = torch.full((x.numel() + 1,), 77, dtype=x.dtype)
    flat[1:] = x.reshape(-1)
    return flat[1:].view(x.shape)


def expanded(x: Tensor) -> Tensor:
    """The first sample for all: stride 0."""
    return x[:1].expand(x.shape)


def scalar(x: Tensor) -> Tensor:
    """One element for all: every stride 0."""
    return x.reshape(-1)[:1].reshape([1] * x.dim()).expand(x.shape) if x.numel() else x


def overlapping(x: Tensor) -> Tensor:
    """Windows of one row of memory: neighbours share elements."""
    if not x.numel():
        return x
    flat = x.reshape(-1)
    return torch.as_strided(flat, x.shape, [1] * x.dim())
