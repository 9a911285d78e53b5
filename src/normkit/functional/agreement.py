"""What the ranks say of a synchronised call before its payload travels: a header of fixed size, in its own collective.

gloo ends a process, without a Python error, whose collective has another size than its neighbour's. So ranks that
disagree are found out here and named. The header travels at a layer's first call in a process group, and at every call
where NORMKIT_CHECK_RANKS=1 asks for it (one more collective of 24 bytes a rank); a compiled graph holds none.

A rank that does not call at all, because its layer evaluates or is skipped, shows as another call's header, or by the
group's timeout.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from .._environment import switched_on
from ..distributed import Group, gather, named, verify_serves

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_calls: WeakKeyDictionary[object, int] = WeakKeyDictionary()  # synchronised calls so far, by group
_agreed: WeakKeyDictionary[object, WeakSet[nn.Module]] = WeakKeyDictionary()  # layers that have sent one, by group


def is_due(layer: nn.Module, input: Tensor, group: Group) -> bool:
    """Whether this call of the layer sends a header; RuntimeError where the group cannot carry the input's device."""
    if torch.compiler.is_compiling():
        return False
    layers = _agreed.get(named(group))
    if layers is None:
        layers = _agreed[named(group)] = WeakSet()
    due = layer not in layers or switched_on("NORMKIT_CHECK_RANKS")
    if due:
        verify_serves(input.device, group)
    layers.add(layer)
    return due


def count(group: Group) -> int:
    """The number of this call among the group's synchronised ones, from 1."""
    _calls[named(group)] = number = _calls.get(named(group), 0) + 1
    return number


def verify(input: Tensor, number: int, group: Group) -> None:
    """RuntimeError, on every rank, where some rank is at another call, or has other channels or another dtype."""
    own = torch.tensor([number, input.shape[1], _DTYPES.index(input.dtype) if input.dtype in _DTYPES else -1])
    headers = [header.tolist() for (header,) in gather([own], group)]
    other = next((rank for rank, header in enumerate(headers) if header != headers[0]), None)
    if other is not None:
        raise RuntimeError(
            f"the ranks disagree about a synchronised batch norm: rank 0 is at {_text(headers[0])}, rank {other} at "
            f"{_text(headers[other])}. Every rank has to call the same layers in the same order, all in training"
        )


def _text(header: list[int]) -> str:
    number, channels, dtype = header
    kind = str(_DTYPES[dtype]).removeprefix("torch.") if dtype >= 0 else "another dtype"
    return f"call {number}, with {channels} channels of {kind}"
