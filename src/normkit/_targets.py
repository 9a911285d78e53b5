"""What a command line names: `package.module:object`, a factory of a model, a loader of batches.

Rule: what the person at the keyboard can set right is a UsageError of one line. Named modules are imported, and named
functions called, as `python -m` would.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .errors import UsageError

FACTORY = "package.module:factory"


def model(name: str, expected: str = FACTORY) -> tuple[nn.Module, Any]:
    """A model, and what was named: the model itself, or a function that returned it."""
    named = resolve(name, expected)
    if isinstance(named, nn.Module):
        return named, type(named)
    if not callable(named):
        raise UsageError(f"{name} is a {type(named).__name__}, expected a function that returns a model, or a model")
    made = _called(named, name)
    if not isinstance(made, nn.Module):
        raise UsageError(f"{name} returned a {type(made).__name__}, expected a model (a torch.nn.Module)")
    return made, named


def batches(name: str) -> Iterator[Any]:
    """What a loader gives, batch by batch."""
    made = resolve(name, "package.module:loader")
    if callable(made) and not hasattr(made, "__iter__"):
        made = _called(made, name)
    if not hasattr(made, "__iter__") or isinstance(made, (Tensor, Mapping, str)):
        raise UsageError(f"{name} gave a {type(made).__name__}, expected batches: a DataLoader, a list, a generator")
    return _guarded(made, name)


def resolve(name: str, expected: str) -> Any:
    """The object that `package.module:object` names."""
    module, colon, path = name.partition(":")
    if not colon or not module or not path:
        raise UsageError(f"no file is called {name!r}, and it names no object: expected {expected}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # a console script does not look where it is called
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise UsageError(f"cannot import {module}: {line(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{module} has no {path}")
        found = getattr(found, part)
    return found


def line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _called(function: Any, name: str) -> Any:
    try:
        return function()
    except Exception as error:
        raise UsageError(f"{name} raised {line(error)}") from error


def _guarded(made: Iterable[Any], name: str) -> Iterator[Any]:
    """The batches; what the loader raises on the way is a UsageError."""
    try:
        yield from made
    except Exception as error:
        raise UsageError(f"{name} raised {line(error)}") from error
