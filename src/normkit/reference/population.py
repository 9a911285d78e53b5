"""Statistics of a data set for inference, from its batches: two unbiased estimates of mean and variance.

Each batch is (N, C, *), any N and any space; results are (C,). They agree on iid data. On clustered data, where batches
differ in mean, `batch_average` leaves out the variance between batches and `population` does not.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from normkit.reference._moments import moments
from normkit.reference.running import unbiased


def _rows(batch: Tensor) -> Tensor:
    """(N, C, *) as (m, C), one row a value."""
    return batch.movedim(1, -1).reshape(-1, batch.shape[1])


def population(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, unbiased variance) of all values as if the data set were one batch."""
    x = torch.cat([_rows(batch) for batch in batches])
    mean, var, _ = moments(x, (0,))
    return mean[0], unbiased(var[0], len(x))


def batch_average(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """(E[mean_B], m/(m-1) E[var_B]) as Ioffe & Szegedy 2015, algorithm 2, writes it for batches of equal m.

    For unequal m each batch counts by what it knows, m_B values in the mean and m_B - 1 degrees of freedom in the
    variance: `sum(m_B*mean_B)/sum(m_B)` and `sum(m_B*var_B)/sum(m_B - 1)`. Both stay unbiased, both are the formula
    above when all m_B are m, and a batch of one value adds to the mean and nothing to the variance, instead of 0/0.
    """
    counts, means, squares = [], [], []
    for batch in batches:
        mean, var, _ = moments(_rows(batch), (0,))
        m = len(_rows(batch))
        counts.append(m)
        means.append(m * mean[0])
        squares.append(m * var[0])
    freedom = sum(counts) - len(counts)
    if freedom < 1:
        raise ValueError("expected a batch with more than 1 value per channel (every batch has at most 1)")
    return torch.stack(means).sum(0) / sum(counts), torch.stack(squares).sum(0) / freedom
