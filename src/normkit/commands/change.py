"""`normkit convert`, `fold`, `recalibrate`, `freeze`: a factory's model, the weights of a file in it, changed, written.

Rules: the input is never written over; nothing is written where no layer was changed, and with `--dry-run`; the model
is in evaluation mode throughout. What the person at the keyboard can set right is a UsageError of one line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .. import _targets
from .._checkpoint import SUFFIXES
from ..errors import UsageError
from ..model.terminal import show
from ..statistics import batches as feeding
from ..statistics.recalibrate import recalibrate
from ..surgery.changes import changes
from ..surgery.convert import convert
from ..surgery.fold import fold
from ..surgery.freeze import freeze
from . import output, weights

MOST_NUMBERS = 1 << 28  # of an example
Operation = Literal["convert", "fold", "recalibrate", "freeze"]


@dataclass(frozen=True)
class Order:
    """One call. target: package.module:factory. family, domains: what convert turns norms into. weights, part: the file
    that is loaded, and which state dict in it. out: the file that is written, by its suffix. data, shape: batches, or
    the shape of an example. steps: batches at most."""

    operation: Operation
    target: str
    family: str | None = None
    domains: int | None = None
    weights: Path | None = None
    part: str | None = None
    out: Path | None = None
    dry_run: bool = False
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    data: str | None = None
    shape: str | None = None
    steps: int | None = None


def run(order: Order) -> int:
    """Print the table of changes and write the file; 1 where nothing was changed, else 0."""
    _verify(order)
    if order.out is not None and not order.dry_run:
        output.prepare(order.out)
    example = _example(order)
    model = _model(order)
    changed, report, done = _changed(model, order, example)
    show(report)
    if not done:
        print("nothing was changed, and nothing is written")
        return 1
    if order.out is None:
        return 0
    if order.dry_run:
        print(f"not written, as it is a dry run: {order.out}")
        return 0
    said = output.write(order.out, changed, example)
    print(f"written: {order.out}{said}")
    return 0


def _verify(order: Order) -> None:
    """What can be known before anything is imported."""
    if Path(order.target).suffix in SUFFIXES or Path(order.target).exists():
        raise UsageError(
            f"{order.target} is a file, and its layers are not in it: name {_targets.FACTORY}, the file by --weights"
        )
    if order.out is None and not order.dry_run:
        raise UsageError(f"say where to write: --out FILE ({', '.join(output.SUFFIXES)}), or --dry-run to look only")
    if order.out is not None:
        output.verify(order.out, order.weights)
    exported = order.out is not None and order.out.suffix in output.EXPORTED
    if (order.operation == "fold" or exported) and order.data is None and order.shape is None:
        what = "fold" if order.operation == "fold" else f"a file like {order.out}"
        raise UsageError(f"{what} needs an example to run: --input 1x3x224x224, or --data package.module:loader")
    if order.operation == "recalibrate" and order.data is None:
        raise UsageError("recalibrate needs the data: --data package.module:loader")
    if order.part is not None and order.weights is None:
        raise UsageError("--part says which part of the --weights file to take, and no file is given")


def _model(order: Order) -> nn.Module:
    model, _ = _targets.model(order.target)
    if order.weights is not None:
        weights.load(model, order.weights, order.part, order.target)
    model.eval()  # on its own: some models' train() returns nothing
    return model


def _changed(model: nn.Module, order: Order, example: Any) -> tuple[nn.Module, Any, bool]:
    """The changed model, the report on it, whether there is something to write."""
    only, skip = list(order.only) or None, list(order.skip) or None
    if order.operation == "recalibrate":
        report = _asked(lambda: recalibrate(model, _targets.batches(order.data or ""), steps=order.steps, only=only))
        return model, report, bool(report.recalibrated)
    inplace = any(model.children())  # a model that is one norm cannot be replaced in place
    calls: dict[str, Callable[[], nn.Module]] = {
        "convert": lambda: convert(
            model, order.family or "", only, skip, inplace=inplace, example_inputs=example, domains=order.domains
        ),
        "freeze": lambda: freeze(model, only, skip, inplace=inplace, example_inputs=example),
        "fold": lambda: fold(model, example, only=only, skip=skip, inplace=inplace),
    }
    changed = _asked(calls[order.operation])
    found = changes(changed).of(order.operation)
    return changed, found, bool(found.replaced)


def _asked(call: Callable[[], Any]) -> Any:
    """The library's refusals, and what the person's own model raises, in one line."""
    try:
        return call()
    except UsageError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(" ".join(str(error).split())[:500]) from error
    except Exception as error:
        raise UsageError(f"the model raised {_targets.line(error)}") from error


def _example(order: Order) -> Any:
    """The inputs that the model is run on: None, a tuple of positional or a dict of keyword arguments."""
    if order.shape is not None:
        return (_drawn(order.shape),)
    exported = order.out is not None and order.out.suffix in output.EXPORTED
    return _first(order.data) if order.data is not None and (order.operation != "recalibrate" or exported) else None


def _first(name: str) -> Any:
    first = next(islice(_targets.batches(name), 1), None)
    if first is None:
        raise UsageError(f"{name} gave no batch")
    try:
        args, kwargs = feeding.arguments(first)
    except TypeError as error:
        raise UsageError(" ".join(str(error).split())) from error
    return dict(kwargs) or args


def _drawn(text: str) -> torch.Tensor:
    sizes = text.lower().split("x")
    if not all(re.fullmatch(r"[1-9]\d{0,9}", size) for size in sizes):
        raise UsageError(f"--input takes sizes with x between, as 1x3x224x224, got {text!r}")
    if math.prod(map(int, sizes)) > MOST_NUMBERS:
        raise UsageError(f"--input takes at most {MOST_NUMBERS:,} numbers, got {text}")
    return torch.randn([int(size) for size in sizes], generator=torch.Generator().manual_seed(0))
