"""`normkit doctor`, `compare`, `explain`, `rules`: targets read, the library called, its answer shown and written.

Rule: what the person at the keyboard can set right is a UsageError of one line.
"""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _checkpoint, _files, _targets
from .._checkpoint import SUFFIXES
from ..errors import UsageError
from ..model.terminal import show
from .catalogue import KINDS, catalogue
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
        batches = None if order.data is None else list(islice(_targets.batches(order.data), BATCHES))
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
    both = target(before)[0], target(after)[0]
    with _in_one_line():
        return compare(*both)


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
        return _checkpoint.read(path), name
    model, named = _targets.model(name, f"{_targets.FACTORY}, or a checkpoint (.pt, .safetensors)")
    return model, _source(named, name)


def _diagnosed(model: Any, batches: Any, order: Order) -> Diagnosis:
    ignored = [_ignored(text) for text in order.ignore]
    with _in_one_line():
        return diagnose(model, batches, select=order.select or None, ignore=ignored)


@contextmanager
def _in_one_line() -> Iterator[None]:
    """What cannot be diagnosed or compared is the user's to set right."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _ignored(text: str) -> str:
    code, equals, why = text.partition("=")
    if not equals or not why.strip():
        raise UsageError(f"--ignore needs a reason: --ignore {code}='why it does not count here'")
    return code


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
    _files.update(path, buffer.getvalue, most=_checkpoint.LARGEST)
    return healing
