"""`normkit doctor`, `compare`, `explain`, `rules`: targets read, the library called, its answer shown and written.

Rule: what the person at the keyboard can set right is a UsageError of one line.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _files
from ..errors import UsageError
from . import checkpoint
from .catalogue import KINDS, catalogue
from .checkpoint import SUFFIXES
from .compare import Comparison, compare
from .diagnose import Diagnosis, diagnose
from .evidence import BATCHES
from .finding import Severity
from .heal import Healing, heal_state
from .patient import FAULTS, patient
from .sarif import sarif


@dataclass(frozen=True)
class Order:
    """One call of `normkit doctor`; the paths are what it writes."""

    target: str | None
    data: str | None
    fix: Path | None
    html: Path | None
    json: Path | None
    sarif: Path | None
    select: Sequence[str]
    ignore: Sequence[str]
    fail_on: Severity


def doctor(order: Order) -> int:
    """Print the report, write what was asked for; 1 where a finding is as severe as `fail_on`, else 0."""
    model: Any
    batches: Any
    if order.target is None:
        print("No model named; the patient is a small net with planted faults:")
        print("\n".join(f"  {fault}" for fault in FAULTS), end="\n\n")
        model, batches = patient()
        artifact = "normkit/doctor/patient.py"
    else:
        model, artifact = target(order.target)
        batches = None if order.data is None else _loaded(order.data)
    if order.data is not None and not isinstance(model, nn.Module):
        raise UsageError(f"--data needs a model to run, and {order.target} is a file of tensors: name module:factory")
    if order.fix is not None and order.target is not None and _same_file(order.fix, order.target):
        raise UsageError(f"--fix writes a new file, never the input {order.target}: name another place")
    found = _diagnosed(model, batches, order)
    show(found)
    if order.html is not None:
        found.to_html(order.html, order.target)
    if order.json is not None:
        _files.update(order.json, lambda: found.to_json() + "\n")
    if order.sarif is not None:
        _files.update(order.sarif, lambda: sarif(found, artifact) + "\n")
    if order.fix is not None:
        healing = _fix(found, model, order.fix)
        print()
        show(healing)
        print(f"written: {order.fix}")
    return 1 if found.at_least(order.fail_on) else 0


def compared(before: str, after: str) -> Comparison:
    """`normkit compare`."""
    return compare(target(before)[0], target(after)[0])


def explain(code: str) -> str:
    """A rule's page."""
    rule = catalogue().get(code.upper())
    if rule is None:
        raise UsageError(f"no rule is called {code!r}; `normkit rules` lists them")
    return f"{rule.code}: {rule.page.strip()}"


def rules() -> str:
    """All rules, by kind."""
    lines: list[str] = []
    for kind, title in KINDS.items():
        lines += ["", f"{kind}xx {title}"] if lines else [f"{kind}xx {title}"]
        lines += [f"  {rule.code}  {rule.title}" for rule in catalogue().values() if rule.code.startswith(kind)]
    return "\n".join(lines)


def target(name: str) -> tuple[nn.Module | Mapping[str, Any], str]:
    """A model from module:factory, or the content of a checkpoint; and the file that it comes from."""
    path = Path(name)
    if path.suffix in SUFFIXES or path.exists():
        return checkpoint.read(path), name
    made = _named(name, "package.module:factory, or a checkpoint (.pt, .safetensors)")
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise UsageError(f"{name} is a {type(made).__name__}, expected a function that returns a model, or a model")
        artifact = _source(made, name)
        made = _called(made, name)
        if not isinstance(made, nn.Module):
            raise UsageError(f"{name} returned a {type(made).__name__}, expected a model (a torch.nn.Module)")
        return made, artifact
    return made, _source(type(made), name)


def show(what: Any) -> None:
    """To a terminal by rich, where it is installed; else as text."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            return Console().print(what)
    print(what.table().text() if isinstance(what, (Healing, Comparison)) else what)


def _diagnosed(model: Any, batches: Any, order: Order) -> Diagnosis:
    ignored = [_ignored(text) for text in order.ignore]
    try:
        return diagnose(model, batches, select=order.select or None, ignore=ignored)
    except (TypeError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _ignored(text: str) -> str:
    code, equals, why = text.partition("=")
    if not equals or not why.strip():
        raise UsageError(f"--ignore needs a reason: --ignore {code}='why it does not count here'")
    return code


def _loaded(name: str) -> list[Any]:
    """The first batches of a loader."""
    made = _named(name, "package.module:loader")
    if callable(made) and not hasattr(made, "__iter__"):
        made = _called(made, name)
    if not hasattr(made, "__iter__") or isinstance(made, (torch.Tensor, Mapping, str)):
        raise UsageError(f"{name} gave a {type(made).__name__}, expected batches: a DataLoader, a list, a generator")
    try:
        return list(islice(made, BATCHES))
    except Exception as error:
        raise UsageError(f"{name} raised {_line(error)}") from error


def _named(name: str, expected: str) -> Any:
    module, colon, path = name.partition(":")
    if not colon or not module or not path:
        raise UsageError(f"no file is called {name!r}, and it names no object: expected {expected}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # a console script does not look where it is called
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise UsageError(f"cannot import {module}: {_line(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{module} has no {path}")
        found = getattr(found, part)
    return found


def _called(function: Any, name: str) -> Any:
    try:
        return function()
    except Exception as error:
        raise UsageError(f"{name} raised {_line(error)}") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _source(made: Any, name: str) -> str:
    try:
        path = inspect.getsourcefile(made)
    except TypeError:  # a built-in
        path = None
    if path is None:
        return name.partition(":")[0].replace(".", "/") + ".py"
    return os.path.relpath(path).replace(os.sep, "/")


def _same_file(path: Path, other: str) -> bool:
    return path.exists() and Path(other).exists() and path.samefile(other)


def _fix(found: Diagnosis, model: nn.Module | Mapping[str, Any], path: Path) -> Healing:
    """Write the healed state; what was done."""
    content: Any
    if isinstance(model, nn.Module):
        healed, healing = found.healing(model)
        content = healed.state_dict()
    else:
        content, healing = heal_state(found.findings, model)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    _files.update(path, buffer.getvalue, most=checkpoint.LARGEST)
    return healing
