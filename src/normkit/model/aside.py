"""Modules that are held outside of the module tree: in a list, by a bound method, in the closure of a function.

What replaces a layer takes its place in the tree; whoever holds the layer otherwise keeps calling the old one, which no
`train()` and no cast reaches any more. Copies go the other way round: a function is not copied, so what its closure
holds belongs to the original.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import nn

_OF_THE_TREE = frozenset(("_modules", "_parameters", "_buffers"))


def held_aside(model: nn.Module) -> dict[nn.Module, str]:
    """Module -> the first attribute that holds it beside the tree, as "norms of stem"."""
    found: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        for key, held in _attributes(module):
            found.setdefault(held, f"{key} of {name or 'the model'}")
    return found


def leads_back(twin: nn.Module, model: nn.Module) -> str | None:
    """The first attribute of a copy that holds a module of the original, or None."""
    own = set(model.modules())
    for name, module in twin.named_modules():
        for key, held in _attributes(module):
            if held in own:
                return f"{name}.{key}".lstrip(".")
    return None


def _attributes(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for key, value in module.__dict__.items():
        if key not in _OF_THE_TREE and not key.startswith("_normkit") and not key.endswith("_hooks"):
            yield from ((key, held) for held in _modules_in(value))


def _modules_in(value: Any) -> Iterator[nn.Module]:
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += _content(value)


def _content(value: Any) -> list[Any]:
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
    return []


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
