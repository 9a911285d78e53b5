"""The running statistics of all ranks as those of all their data: `nk.sync_buffers`.

Rule: what may differ between ranks (names, shapes, a weight) travels first in a header of fixed size, because gloo ends
a process whose collective has another size than its neighbour's. Then all layers travel in one collective.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from .. import distributed as ranks
from ..model.kept_tensor import overwrite
from ..model.transaction import Transaction
from .merge import check_finite, check_readable, merge_statistics, statistics_of


def sync_buffers(model: nn.Module, process_group: ranks.Group = None, *, weight: float = 1.0) -> tuple[str, ...]:
    r"""Merge the running statistics of all ranks, and give every rank the same.

    .. math:: \mathrm{mean} = \sum_r p_r\, \mathrm{mean}_r, \quad
              \mathrm{var} = \sum_r p_r \big(\mathrm{var}_r + (\mathrm{mean}_r - \mathrm{mean})^2\big), \quad
              p_r = \mathrm{weight}_r / \sum_q \mathrm{weight}_q

    The spread between the ranks' means is part of the variance. DistributedDataParallel gives every rank rank 0's
    buffers, which saw that rank's data alone; an average of the variances misses the spread. Call it on all ranks, at
    the end of an epoch or before an evaluation, with ``broadcast_buffers=False`` in DistributedDataParallel. Layers
    that are synchronised in every step (:class:`normkit.SyncBatchNorm`) have equal buffers, and keep them.

    Args:
        model: the same architecture on every rank, wrapped in DistributedDataParallel or not.
        process_group: who takes part; None: all ranks.
        weight: how many samples this rank's statistics stand for; only the ratios between ranks count. 0: this rank
            takes what the others have.

    Returns:
        The names of the layers that were merged. On one rank, or without torch.distributed, nothing changes.
        Their num_batches_tracked becomes the largest of all ranks'. Written in place, all layers or none.

    Raises:
        ValueError: on every rank: some rank has other layers or shapes, statistics without values or with NaN or Inf, a
            weight that is not finite and at least 0, or all weights are 0. No model has changed.
        RuntimeError: torch.distributed is initialized and this rank is not in the group.
    """
    own = statistics_of(model.state_dict())
    problem = _problem(own, weight)
    headers = ranks.gather([_header(own, weight, problem)], process_group)
    _verify_headers([header for (header,) in headers], problem)
    names = tuple(dict.fromkeys(key.rpartition(".")[0] for key in own))
    if len(headers) == 1 or not own:
        return names
    parts = ranks.gather(list(own.values()), process_group)
    states = [dict(zip(own, part, strict=True)) for part in parts]
    merged = merge_statistics(states, [float(header[0]) for (header,) in headers])
    with Transaction() as change, change:
        change.keep_values(*own.values())
        change.commit(lambda: _write(own, merged))
    return names


def _problem(own: dict[str, Tensor], weight: float) -> str | None:
    """Why this rank's statistics cannot be merged, or None."""
    if not (math.isfinite(weight) and weight >= 0):
        return f"weight must be a finite number of at least 0, got {weight}"
    try:
        check_readable(own, "this rank's model")
        if weight > 0:
            check_finite(own, "this rank's model")
    except ValueError as error:
        return str(error)
    return None


def _header(own: dict[str, Tensor], weight: float, problem: str | None) -> Tensor:
    """(weight, whether there is a problem, what the keys and shapes are) as float64: 48 bits are exact in it."""
    described = repr([(key, tuple(value.shape) if problem is None else None) for key, value in own.items()])
    digest = int.from_bytes(hashlib.sha256(described.encode()).digest()[:6], "big")
    return torch.tensor([weight, float(problem is not None), digest], dtype=torch.float64)


def _verify_headers(headers: list[Tensor], problem: str | None) -> None:
    if problem is not None:
        raise ValueError(problem)
    bad = [rank for rank, header in enumerate(headers) if header[1] != 0]
    if bad:
        raise ValueError(f"the statistics of rank {bad[0]} cannot be merged: its own error says why")
    other = [rank for rank, header in enumerate(headers) if header[2] != headers[0][2]]
    if other:
        raise ValueError(
            f"rank {other[0]} has other layers with running statistics, or other shapes, than rank 0: expected the "
            "same model on every rank"
        )
    if sum(float(header[0]) for header in headers) <= 0:
        raise ValueError("weight is 0 on every rank: expected a rank that has seen samples")


def _write(own: dict[str, Tensor], merged: dict[str, Tensor]) -> None:
    for key, buffer in own.items():
        overwrite(buffer, merged[key])
