"""Modules that are held outside of the module tree: in a list, by a bound method, in the closure of a function.

What replaces a layer takes its place in the tree; whoever holds the layer otherwise keeps calling the old one, which no
`train()` and no cast reaches any more. Copies go the other way round: a function is not copied, so what its closure
holds belongs to the original.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_OF_THE_TREE = frozenset(("_modules", "_parameters", "_buffers"))
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
_DEPTH = 1  # objects in objects


def held_aside(model: nn.Module) -> dict[nn.Module, str]:
    """Module -> the first attribute of another that holds it beside the tree, as "norms of stem"."""
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        for key, held in _attributes(module):
            if held is not module:  # a forward of its own goes where it goes
                found.setdefault(held, f"{key} of {name or 'the model'}")
    return found


def leads_back(twin: nn.Module, model: nn.Module) -> str | None:
    """The first attribute of a copy that holds a module of the original, or None. Hooks count: they run with it."""
    own = set(model.modules())
    for name, module in twin.named_modules():
        for key, held in _attributes(module, hooks=True):
            if held in own:
                return f"{name}.{key}".lstrip(".")
    return None


def _attributes(module: nn.Module, hooks: bool = False) -> Iterator[tuple[str, nn.Module]]:
    for key, value in module.__dict__.items():
        counts = key not in _OF_THE_TREE and not key.startswith("_normkit") and (hooks or not key.endswith("_hooks"))
        if counts and value is not None and type(value) not in _PLAIN:
            yield from ((key, held) for held in _modules_in(value))


def _modules_in(value: Any) -> Iterator[nn.Module]:
    waiting, seen = [(value, 0)], set()
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, nn.Module):
            yield value
        elif type(value) not in _PLAIN and id(value) not in seen:
            seen.add(id(value))
            content = _content(value)
            if content is None:  # an object: what it holds itself, and not what holds it again (a trainer, a registry)
                content, depth = list(getattr(value, "__dict__", {}).values()), depth + 1
            if depth <= _DEPTH:
                waiting += ((part, depth) for part in content)


def _content(value: Any) -> list[Any] | None:
    if isinstance(value, dict):
        return [*value.values()]
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [*value]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [*cells, *(value.__defaults__ or ())]
    return [] if isinstance(value, (type, ModuleType, Tensor)) else None


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
