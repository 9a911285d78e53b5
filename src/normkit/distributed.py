"""Moments across ranks with torch.distributed: one collective for any number of tensors or sets.

Rules: every rank calls with the same shapes; every rank gets the same bits, since each merges the same gathered values
in the order of the ranks; counts may differ and may be zero. Any backend: the bucket travels on the device that the
backend serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from .moments import Moments

Group: TypeAlias = "dist.ProcessGroup | None"  # None: the default group


def is_initialized() -> bool:
    """Whether torch.distributed is there and has been initialized."""
    return dist.is_available() and dist.is_initialized()


def is_distributed(group: Group = None) -> bool:
    """Whether torch.distributed is initialized with more than one rank in `group`."""
    return is_initialized() and dist.get_world_size(group) > 1


def gather(tensors: Sequence[Tensor], group: Group = None) -> list[list[Tensor]]:
    """The tensors of every rank, by rank, in the dtypes and on the devices they came with; one collective in float64.

    Without torch.distributed the one rank's own.
    """
    if not is_distributed(group):
        return [list(tensors)]
    home = _bucket_device(group)
    bucket = torch.cat([tensor.detach().to(device=home, dtype=torch.float64).reshape(-1) for tensor in tensors])
    parts = [torch.empty_like(bucket) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, bucket, group=group)
    sizes = [tensor.numel() for tensor in tensors]
    return [
        [piece.view(own.shape).to(own) for piece, own in zip(part.split(sizes), tensors, strict=True)] for part in parts
    ]


def merge_across_ranks(sets: Sequence[Moments], group: Group = None) -> list[Moments]:
    """Each of `sets` merged over all ranks: what one process over all data would have.

    Args:
        sets: any number of moments, the same shapes on every rank; counts may differ, zero included.
        group: the process group, None for the default one.

    Returns:
        As many moments, float64, bitwise equal on every rank, detached. Counts come back as int where they are one
        number.
    """
    packed: list[Tensor] = []
    for moments in sets:
        packed += [torch.as_tensor(moments.count), moments.mean.detach(), moments.m2.detach()]
    ranks = gather(packed, group)
    merged = []
    for i, own in enumerate(sets):
        total = _unpack(ranks[0][3 * i : 3 * i + 3], own)
        for rank in ranks[1:]:
            total = total.merge(_unpack(rank[3 * i : 3 * i + 3], own))
        merged.append(total)
    return merged


def _unpack(parts: list[Tensor], own: Moments) -> Moments:
    count, mean, m2 = parts
    return Moments(count if count.dim() else int(count), mean, m2, own.dim)


def _bucket_device(group: Group) -> torch.device:
    if "nccl" in str(dist.get_backend(group)) and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
