"""Tensors of all ranks with torch.distributed: one collective for any number of them.

Rules: every rank calls with the same shapes and gets the same values in the order of the ranks, so that what each rank
merges of them has the same bits everywhere. Any backend: the bucket travels on the device that the backend serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from . import _torch

Group: TypeAlias = "dist.ProcessGroup | None"  # None: the default group


def is_initialized() -> bool:
    """Whether torch.distributed is there and has been initialized."""
    return dist.is_available() and dist.is_initialized()


def is_distributed(group: Group = None) -> bool:
    """Whether torch.distributed is initialized with more than one rank in `group`."""
    return is_initialized() and dist.get_world_size(group) > 1


def named(group: Group = None) -> Group:
    """The group itself: the default one where none is named."""
    return dist.group.WORLD if group is None else group


def is_member(group: Group = None) -> bool:
    """Whether this rank is in `group`; without torch.distributed it is the only one."""
    return not is_initialized() or dist.get_rank(group) >= 0


def gather(tensors: Sequence[Tensor], group: Group = None) -> list[list[Tensor]]:
    """The tensors of every rank, by rank, in the dtypes and on the devices they came with; one collective in float64.

    Without torch.distributed the one rank's own.
    """
    if not is_distributed(group):
        return [list(tensors)]
    home = _bucket_device(group)
    bucket = torch.cat([tensor.detach().to(device=home, dtype=torch.float64).reshape(-1) for tensor in tensors])
    parts = _gathered(bucket, group)
    sizes = [tensor.numel() for tensor in tensors]
    return [
        [piece.view(own.shape).to(own) for piece, own in zip(part.split(sizes), tensors, strict=True)] for part in parts
    ]


def _gathered(bucket: Tensor, group: Group) -> list[Tensor]:
    count = dist.get_world_size(group)
    if torch.compiler.is_compiling():
        return list(_torch.all_gather_in_graph(bucket, named(group)).view(count, -1))
    parts = [torch.empty_like(bucket) for _ in range(count)]
    dist.all_gather(parts, bucket, group=group)
    return parts


def total(value: Tensor, group: Group = None) -> Tensor:
    """The sum of a tensor over the ranks, on every rank."""
    if torch.compiler.is_compiling():
        return _torch.all_reduce_in_graph(value, named(group))
    found = value.contiguous().clone()
    dist.all_reduce(found, group=group)
    return found


def _bucket_device(group: Group) -> torch.device:
    if "nccl" in _torch.backend_of(group) and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
