"""A failing case made as simple as it can be with the same failure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from .case import SIMPLEST, Array, Case, features, usual
from .finding import Finding
from .findings import key
from .fit import fit

_NORMS = ("batch_norm", "group_norm", "layer_norm", "rms_norm", "instance_norm")
# Where a field has to be unusual, the most usual of the unusual: a fault of all of them is one kind then.
_NEXT = {
    "activation": ("'relu'", "'silu'", "nn.Softplus()"),
    "eps": ("0.1",),
    "momentum": ("0.37",),
    "mask": ("random",),
}
_NEXT_OF_ARRAY = {
    "dtype": ("float64", "float16"),
    "layout": ("channels_last", "strided"),
    "values": ("mean1e2",),
    "form": ("element",),
}
_FIELDS = ("transform", "after", "hook", "edit", "alias", "threads", "mask", "activation", "momentum", "eps", "layer")


def shrink(
    case: Case, finding: Finding, run: Callable[[Case], Finding | None], most: int = 250
) -> tuple[Case, Finding]:
    """The simplest case found within `most` runs that fails in the same way, and its finding."""
    tried = {repr(case)}
    left = most if finding.kind != "hang" else 12
    while left > 0:
        for candidate in _simpler(case):
            candidate = fit(candidate)
            if repr(candidate) in tried or _size(candidate) >= _size(case):
                continue
            tried.add(repr(candidate))
            left -= 1
            found = run(candidate)
            if found is not None and key(found) == key(finding):
                case, finding = candidate, found
                break
            if left <= 0:
                return case, finding
        else:
            return case, finding
    return case, finding


def _size(case: Case) -> tuple[int, ...]:
    order = _NORMS.index(case.norm) if case.norm in _NORMS else len(_NORMS)
    odd = [(table, getattr(case, name)) for name, table in _NEXT.items()]
    odd += [(t, getattr(a, name)) for name, t in _NEXT_OF_ARRAY.items() for a in case.tensors.values()]
    oddness = sum(table.index(value) if value in table else len(table) for table, value in odd)
    shape = len(case.shape), math.prod(case.shape), sum(case.shape)
    return len(features(case)), order, oddness, *shape, len(case.wanted)


def _simpler(case: Case) -> Iterator[Case]:
    """Cases with one thing less, the largest things first."""
    for name in ("contexts", "around"):
        for text in getattr(case, name):
            yield case.but(**{name: tuple(t for t in getattr(case, name) if t != text)})
    for name in _FIELDS:
        if getattr(case, name) != getattr(SIMPLEST, name):
            yield case.but(**{name: getattr(SIMPLEST, name)})
    for name, table in _NEXT.items():
        if getattr(case, name) != getattr(SIMPLEST, name):
            yield from (case.but(**{name: value}) for value in table)
    for plan in ("backward", "none"):
        if case.plan != plan:
            yield case.but(plan=plan)
    for name in [n for n in case.tensors if n not in ("x", "dy")]:
        yield case.with_tensor(name, None)
    yield case.with_tensor("running_mean", None).with_tensor("running_var", None)
    for norm in _NORMS:
        yield case.but(norm=norm, part=1)
        yield case.but(norm=norm, layer=False, part=1)
    if not case.training:
        yield case.but(training=True)
    for name in case.wanted:
        yield case.but(wanted=tuple(n for n in case.wanted if n != name))
    yield case.but(wanted=("x",))
    for name, array in case.tensors.items():
        for f in dataclasses.fields(Array):
            if getattr(array, f.name) != getattr(usual(name), f.name):
                yield case.tensor(name, **{f.name: getattr(usual(name), f.name)})
                yield from (case.tensor(name, **{f.name: value}) for value in _NEXT_OF_ARRAY.get(f.name, ()))
        yield case.with_tensor(name, usual(name))
    floats = {name: dataclasses.replace(array, dtype="float32") for name, array in case.tensors.items()}
    yield case.but(tensors=floats)
    yield case.but(tensors={n: dataclasses.replace(a, layout="contiguous") for n, a in case.tensors.items()})
    if case.part != 1:
        yield case.but(part=1)
    yield from (case.but(shape=shape) for shape in _smaller(case.shape))


def _smaller(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield from ((2, 3), (2, 3, 4), (4, 4), (2, 2), (3, 4, 5, 6))
    for axis in range(len(shape)):
        yield shape[:axis] + shape[axis + 1 :]
    for axis, size in enumerate(shape):
        for less in sorted({1, 2, 3, size // 2, size - 1}):
            if 0 < less < size:
                yield (*shape[:axis], less, *shape[axis + 1 :])
