"""One gradient step in a chain of scalar weights: what the gradient promises and what the step does.

w: (m,) weights. The chain's output is y = w_1 w_2 ... w_m x, to be lowered by a step of the rate eps:

    g_i = dy/dw_i = x * prod_{k != i} w_k             w_i <- w_i - eps g_i
    y(w - eps g) - y(w) = sum_{j >= 1} (-eps)^j e_j
    e_j = x * sum over sets S of j weights of prod_S g * prod_{not S} w

The gradient promises the term of j = 1, -eps sum g_i^2; there are m over j products in the j-th (Goodfellow et al.
2016, section 8.7.1).
"""

from __future__ import annotations

import torch
from torch import Tensor


def chain(w: Tensor, x: float = 1.0) -> Tensor:
    """y, 0-dim."""
    return w.prod() * x


def chain_gradient(w: Tensor, x: float = 1.0) -> Tensor:
    """g: (m,); products of the others, so that a weight may be 0."""
    others = 1 - torch.eye(len(w), dtype=w.dtype)
    return x * torch.where(others.bool(), w, torch.ones_like(w)).prod(1)


def chain_step_terms(w: Tensor, rate: float, x: float = 1.0) -> Tensor:
    """(m,): what the powers 1, ..., m of the rate add to y in one step; they sum to y after minus y before."""
    g = chain_gradient(w, x)
    terms = w.new_zeros(len(w) + 1)
    terms[0] = x
    for weight, gradient in zip(w, g, strict=True):
        lower = torch.cat([w.new_zeros(1), terms[:-1]])
        terms = terms * weight - lower * rate * gradient
    return terms[1:]
