"""Test-time adaptation of batch norm (Schneider et al. 2020): the source's statistics as a prior for the test batch's.

All statistics: (C,). N = `prior`, the number of samples that the source's statistics are worth; n = samples in the test
batch. N = 0 is the test batch alone (training's statistics), N = inf is the source alone (plain evaluation).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def source_share(prior: float, n: int) -> float:
    """N/(N + n), the weight of the source; 1 for an infinite prior, and for nothing at all."""
    if not prior >= 0:
        raise ValueError(f"expected prior >= 0 samples (got {prior})")
    return 1.0 if math.isinf(prior) or prior + n == 0 else prior / (prior + n)


def adapt(
    source_mean: Tensor, source_var: Tensor, mean: Tensor, var: Tensor, n: int, prior: float
) -> tuple[Tensor, Tensor]:
    """The paper's mixture: `mean = N/(N+n) mean_s + n/(N+n) mean_t`, and the same for the variance."""
    share = source_share(prior, n)
    return share * source_mean + (1 - share) * mean, share * source_var + (1 - share) * var


def adapt_merged(
    source_mean: Tensor, source_var: Tensor, mean: Tensor, var: Tensor, n: int, prior: float
) -> tuple[Tensor, Tensor]:
    """The same weights as one population: the mixture's variance plus what lies between the two means.

    `var = share*var_s + (1 - share)*var_t + share*(1 - share)*(mean_s - mean_t)^2`: the moments of N source samples and
    n test samples merged. It differs from the paper by the last term, which is large exactly when the shift is.
    """
    share = source_share(prior, n)
    mixed_mean, mixed_var = adapt(source_mean, source_var, mean, var, n, prior)
    return mixed_mean, mixed_var + share * (1 - share) * (source_mean - mean) ** 2


def entropy(logits: Tensor) -> Tensor:
    """Tent's loss (Wang et al. 2021): `-sum_c p_c log p_c`, `p = softmax(logits)` over axis 1; the mean of the rest."""
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -(p * p.log()).sum(1).mean()


def tent(
    forward: Callable[[list[Tensor]], Tensor], parameters: list[Tensor], rate: float
) -> tuple[Tensor, list[Tensor]]:
    """One step of gradient descent: (the logits before it, the parameters after it).

    forward: parameters -> logits (N, classes, *), under the statistics of the batch.
    """
    leaves = [p.detach().clone().requires_grad_() for p in parameters]
    logits = forward(leaves)
    slopes = torch.autograd.grad(entropy(logits), leaves)
    return logits.detach(), [p.detach() - rate * slope for p, slope in zip(leaves, slopes, strict=True)]
