"""Whether a norm's forward asks about other processes: what it computes there, no probe in one process can show."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..model.families import author

_NAMES = frozenset(("distributed", "get_world_size", "is_initialized", "all_reduce", "all_gather", "process_group"))
_DEPTH = 3  # forward, the helper that it calls, the function that this one calls


def reads_ranks(norm: nn.Module) -> bool:
    """Whether its own forward, or a function that this calls, names what torch.distributed has. Read, not run."""
    own = [base.__dict__["forward"] for base in type(norm).__mro__ if "forward" in base.__dict__ and not author(base)]
    return any(_NAMES & set(_names(forward, _DEPTH)) for forward in own)


def _names(function: Any, depth: int) -> Iterator[str]:
    code = getattr(function, "__code__", None)
    if not isinstance(code, types.CodeType) or depth == 0:
        return
    names = list(_of_code(code))
    yield from names
    known = function.__globals__
    for value in (known.get(name) for name in names):
        yield getattr(value, "__name__", "").rpartition(".")[2]
        for part in (value, *(getattr(value, name, None) for name in names if isinstance(value, types.ModuleType))):
            for called in (part, getattr(part, "forward", None)):  # an autograd function has its code there
                if isinstance(called, types.FunctionType) and not called.__module__.startswith("torch."):
                    yield from _names(called, depth - 1)


def _of_code(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
