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
from ._precision import wide_dtype

Group: TypeAlias = "dist.ProcessGroup | None"  # None: the default group


def is_initialized() -> bool:
    """Whether torch.distributed is there and has been initialized."""
    return dist.is_available() and dist.is_initialized()


def is_distributed(group: Group = None) -> bool:
    """Whether torch.distributed is initialized with more than one rank in `group`.

    Raises:
        RuntimeError: this rank is not in the group; its part of a collective would be a silent one of its own.
    """
    if not is_initialized():
        return False
    size = dist.get_world_size(group)
    if size < 0:
        raise RuntimeError("this rank is not in the process group: expected a call on the group's ranks alone")
    return size > 1


def named(group: Group = None) -> Group:
    """The group itself: the default one where none is named."""
    return dist.group.WORLD if group is None else group


def group_name(group: Group = None) -> str:
    """What collectives in a compiled graph call the group, the same on every rank."""
    found = named(group)
    assert found is not None
    return str(found.group_name)


def verify_serves(device: torch.device, group: Group = None) -> None:
    """Raise RuntimeError if the group has backends, and none for tensors on `device`.

    A group that names none (a fake one, one of threads, some of third parties) is believed to take any.
    """
    served = _served(group)
    if served and device.type not in served:
        raise RuntimeError(
            f"the process group has no backend for tensors on {device.type}, only for {', '.join(served)}: "
            f"move model and input there, or share in a group that serves {device.type}, as "
            "torch.distributed.new_group(backend='gloo') does for cpu"
        )


def gather(tensors: Sequence[Tensor], group: Group = None) -> list[list[Tensor]]:
    """The tensors of every rank, by rank, in the dtypes and on the devices they came with; one collective in float64.

    Without torch.distributed the one rank's own.
    """
    if not is_distributed(group):
        return [list(tensors)]
    sizes = [tensor.numel() for tensor in tensors]
    return [
        [
            piece.view(own.shape).to(own.dtype).to(own.device)
            for piece, own in zip(part.split(sizes), tensors, strict=True)
        ]
        for part in gather_rows(tensors, group)
    ]


def gather_rows(tensors: Sequence[Tensor], group: Group = None) -> Tensor:
    """A rank's values as a row of float64, of every rank: (ranks, values), on the device where the bucket travelled.

    Of float32 where that device has no float64: a count is exact up to 2^24 there.
    """
    home, count = _home(tensors[0].device, group), dist.get_world_size(group)
    # first to `home`: the tensors' own device may have no float64
    wide = wide_dtype(home)
    bucket = torch.cat([tensor.detach().to(home).to(wide).reshape(-1) for tensor in tensors])
    if torch.compiler.is_compiling():
        return _torch.all_gather_in_graph(bucket, named(group)).view(count, -1)
    rows = bucket.new_empty(count, len(bucket))
    dist.all_gather(list(rows.unbind(0)), bucket, group=group)
    return rows


def total(value: Tensor, group: Group | str = None) -> Tensor:
    """The sum of a tensor over the ranks, on every rank. group: its name in the backward of a compiled graph."""
    if isinstance(group, str):
        return _torch.all_reduce_in_graph(value, group)
    if torch.compiler.is_compiling():
        return _torch.all_reduce_in_graph(value, named(group))
    found = value.contiguous().clone()
    dist.all_reduce(found, group=group)
    return found


def _home(own: torch.device, group: Group) -> torch.device:
    """Where a bucket travels: on its own device if the group serves that, else on one that it serves.

    gloo carries every device's tensors through the host: there one copy of the bucket is made here.
    """
    if _torch.backend_of(group) == "gloo":
        return torch.device("cpu")
    if torch.compiler.is_compiling():  # a graph cannot ask; it does not leave its device either
        return own
    served = _served(group)
    if own.type in served or not served:
        return own
    return torch.device("cuda", torch.cuda.current_device()) if "cuda" in served else torch.device(served[0])


def _served(group: Group) -> list[str]:
    """The types of device that the group has a backend for: a group made without naming one has the machine's."""
    return _torch.device_types(named(group))
