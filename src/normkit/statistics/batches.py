"""Feed batches to a model: every form a batch may have, a limit of steps, and a progress bar where rich is installed.

tensor             model(x)
list or tuple      model(batch[0])
mapping            model(**batch)
with forward=      forward(model, batch)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .._torch import COMPILED_FROM
from ..model.ambient import RandomStates
from ..model.dataflow import cloned

Feed = Callable[[nn.Module, Any], object]


def verify(batches: Iterable[Any], steps: int | None, sequential: bool) -> None:
    """Raise for what cannot be gone over, before anything is touched."""
    if isinstance(batches, (Tensor, Mapping, str, bytes)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be an iterable of batches (a DataLoader, a list, a generator), got "
            f"{type(batches).__name__}; put a single batch into a list: [batch]"
        )
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be None (all batches) or an int of at least 1, got {steps!r}")
    if sequential and isinstance(batches, Iterator):
        raise ValueError(
            "sequential=True goes over the batches once for every layer, and an iterator or generator can be gone over "
            "only once: pass a DataLoader or a list, or use sequential=False"
        )


def taken(batches: Iterable[Any], most: int) -> list[Any]:
    """The first batches, the random states as they were. Raises as `verify`, and ValueError where there is none."""
    verify(batches, None, False)
    random = RandomStates()
    try:
        found = list(islice(batches, most))
    finally:
        random.give_back()  # a loader draws its seed
    if not found:
        raise ValueError("expected at least one batch, got none: is the loader empty, or the generator used up?")
    return found


def feed(model: nn.Module, batches: Iterable[Any], steps: int | None, forward: Feed | None, title: str | None) -> int:
    """Run the model on each batch, `steps` at most; returns how many there were. title: of the bar, None for no bar."""
    inner, done = unwrapped(model), 0
    with bar(title, _expected(batches, steps)) as advance:
        for given in islice(batches, steps):
            batch = cloned(given)  # a model may work in place, and a list of batches is gone over again
            (forward or call)(inner, batch)
            done += 1
            advance()
    return done


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside wrappers that would communicate, replicate or run compiled code at each forward."""
    while True:
        compiled = type(model).__name__ == "OptimizedModule"
        if not compiled and not isinstance(model, (DistributedDataParallel, DataParallel)):
            return model
        model = model.get_submodule(COMPILED_FROM if compiled else "module")


def call(model: nn.Module, batch: Any) -> Any:
    """What the model gives for one batch. Raises TypeError for a batch of an unknown form."""
    args, kwargs = arguments(batch)
    return model(*args, **kwargs)


def arguments(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """What a batch is to the model: its positional and its keyword arguments. TypeError for an unknown form."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), batch
    if isinstance(batch, (list, tuple)) and batch:
        return (batch[0],), {}
    what = f"an empty {type(batch).__name__}" if isinstance(batch, (list, tuple)) else type(batch).__name__
    raise TypeError(
        f"a batch must be a tensor, a list or tuple that starts with the model's input, or a dict of its keyword "
        f"arguments; got {what}. Pass forward=lambda model, batch: ... for any other form"
    )


def _expected(batches: Iterable[Any], steps: int | None) -> int | None:
    """How many batches there will be, where that is known."""
    try:
        length = len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a DataLoader over an iterable data set has a __len__ that raises
        length = None
    return length if steps is None else steps if length is None else min(length, steps)


@contextmanager
def bar(title: str | None, total: int | None) -> Iterator[Callable[[], object]]:
    """A progress bar on stderr; nothing without a terminal, without rich, or without a title."""
    if title is None or not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
