"""Domain-specific batch normalization (Chang et al. 2019; with one weight and bias for all, AdaBN: Li et al. 2017).

x: (N, C, *), domain: (N,) from 0 to K - 1, weight, bias: (K, C), or (C,) for all domains alike. A domain's samples are
normalized by batch norm among themselves; a domain without a sample has mean 0 and variance 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.reference.batch_norm import batch_norm, batch_norm_backward


def domain_batch_norm(
    x: Tensor, domain: Tensor, domains: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(y: (N, C, *), mean and biased var of each domain: (K, C))."""
    y, mean, var = torch.empty_like(x), x.new_zeros(domains, x.shape[1]), x.new_zeros(domains, x.shape[1])
    for k in range(domains):
        if (here := domain == k).any():
            y[here], mean[k], var[k] = batch_norm(x[here], of_domain(weight, k), of_domain(bias, k), eps)
    return y, mean, var


def domain_batch_norm_backward(
    dy: Tensor, x: Tensor, domain: Tensor, domains: int, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: (N, C, *), dweight, dbias: weight's shape), domain by domain; shared parameters get the sum."""
    dx = torch.empty_like(x)
    dweight, dbias = x.new_zeros(domains, x.shape[1]), x.new_zeros(domains, x.shape[1])
    for k in range(domains):
        if (here := domain == k).any():
            dx[here], dweight[k], dbias[k] = batch_norm_backward(dy[here], x[here], of_domain(weight, k), eps)
    return (dx, dweight, dbias) if weight.ndim == 2 else (dx, dweight.sum(0), dbias.sum(0))


def of_domain(parameter: Tensor, k: int) -> Tensor:
    """(C,) of (K, C), or of (C,)."""
    return parameter[k] if parameter.ndim == 2 else parameter
