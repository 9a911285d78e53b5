"""(seed, number) -> a case. Every case starts as plain numbers; most then get one or two unusual ingredients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from random import Random
from typing import TypeVar

from . import pools
from .case import Array, Case
from .fit import fit
from .norms import NORMS, channels
from .program import can_edit

T = TypeVar("T")


def draw(seed: int, number: int) -> Case:
    """The case of a number; the same for ever, as long as the tables of `pools.py` stay."""
    r = Random(f"{seed}/{number}")
    case = _numbers(r)
    for ingredient in r.choices(
        list(_INGREDIENTS), weights=list(_INGREDIENTS.values()), k=r.choice([1, 1, 1, 1, 2, 3])
    ):
        case = ingredient(r, fit(case))
    return fit(case)


def often(r: Random, usual: T, others: Sequence[T], share: float) -> T:
    """`usual`, or with probability `share` one of the others."""
    return r.choice(list(others)) if r.random() < share else usual


def _numbers(r: Random) -> Case:
    """A norm of drawn tensors, well formed."""
    norm = r.choice(pools.NORMS)
    shape = _shape(r, norm)
    dtype = r.choice(pools.DTYPES)
    wide = dtype if dtype in ("float32", "float64") else r.choice([dtype, "float32"])
    tensors = {"x": Array(often(r, "normal", pools.VALUES, 0.5), dtype, often(r, "contiguous", pools.LAYOUTS, 0.5))}
    for name, share in (("weight", 0.8), ("bias", 0.7)):
        if r.random() < share:
            usual, others = ("param", pools.WEIGHTS) if name == "weight" else ("normal", pools.BIASES)
            layout = often(r, "contiguous", pools.VECTOR_LAYOUTS, 0.1)
            tensors[name] = Array(often(r, usual, others, 0.2), wide, layout)
    if r.random() < 0.7:
        statistic = "float64" if dtype == "float64" else often(r, "float32", ("float64", dtype), 0.2)
        tensors["running_mean"] = Array(often(r, "normal", pools.BIASES, 0.1), statistic)
        tensors["running_var"] = Array(often(r, "var", pools.VARIANCES, 0.1), statistic)
    if r.random() < 0.35:
        layout = often(r, tensors["x"].layout, pools.LAYOUTS, 0.3)
        tensors["residual"] = Array(often(r, "normal", pools.VALUES, 0.1), often(r, dtype, pools.DTYPES, 0.1), layout)
    tensors["dy"] = Array(
        often(r, "normal", pools.GRADIENTS, 0.2), dtype, often(r, tensors["x"].layout, pools.LAYOUTS, 0.3)
    )
    wanted = tuple(n for n in ("x", "weight", "bias", "residual") if r.random() < (0.9 if n == "x" else 0.7))
    modulation = _modulation(r, dtype, tensors["x"].layout) if r.random() < 0.2 else {}
    tensors |= modulation
    wanted = (*wanted, *(name for name in modulation if r.random() < 0.8))
    return Case(
        norm=norm, layer=r.random() < 0.4, shape=shape, part=r.choice([1, 1, 2, 3, 4]), training=r.random() < 0.65,
        tensors=tensors, mask=often(r, "", pools.MASKS, 0.15), activation=often(r, "", pools.ACTIVATIONS, 0.4),
        eps=often(r, "1e-05", pools.EPS, 0.4), momentum=often(r, "0.1", pools.MOMENTA, 0.4), wanted=wanted,
        plan=often(r, "backward", ("none", "grad", "sum"), 0.4), threads=often(r, 1, (2, 3), 0.05),
    )  # fmt: skip


def _modulation(r: Random, dtype: str, layout: str) -> dict[str, Array]:
    """Scale and shift, of one form mostly."""
    form, found = r.choice(pools.FORMS), {}
    for name, usual, others in (("scale", "param", pools.SCALES), ("shift", "normal", pools.SHIFTS)):
        if r.random() < 0.9:
            own = often(r, form, pools.FORMS, 0.2)
            laid = often(r, layout if own == "element" else "contiguous", pools.LAYOUTS, 0.1)
            kind = often(r, dtype, ("float32", *pools.DTYPES), 0.3)
            found[name] = Array(often(r, usual, others, 0.2), kind, laid, form=own)
    return found


def _shape(r: Random, norm: str) -> tuple[int, ...]:
    rank = 4 if norm == "layer_norm_2d" else r.choice([2, 2, 3, 3, 4, 4, 4, 5])
    if not NORMS[norm].channels:
        rank = r.choice([1, 2, 2, 3, 4])
    most = r.choices([600, 4000, 40_000, 300_000], weights=[60, 30, 8, 2])[0]
    shape: list[int] = [1] * rank
    for axis in r.sample(range(rank), rank):
        room = max(1, most // max(1, math.prod(shape)))
        shape[axis] = r.choice([s for s in pools.SIZES if s <= room] or [1])
    if rank >= 4 and r.random() < 0.3:
        shape[-2:] = r.choice([(1, 1), (7, 7), (1, 7), (2, 2)])
    if r.random() < 0.04:
        shape[r.randrange(rank)] = 0
    return tuple(shape)


def _nothing(r: Random, case: Case) -> Case:
    return case


def _trick(r: Random, case: Case) -> Case:
    name = r.choice([*case.tensors, *case.tensors, "x"])
    return case.tensor(name, trick=r.choice(pools.TRICKS))


def _context(r: Random, case: Case) -> Case:
    return case.but(contexts=(*case.contexts, r.choice(pools.CONTEXTS)))


def _transform(r: Random, case: Case) -> Case:
    return case.but(transform=r.choice(pools.TRANSFORMS))


def _after(r: Random, case: Case) -> Case:
    case = case.but(after=r.choice(pools.AFTERS))
    return case.but(contexts=("nk.recompute_outputs()", *case.contexts)) if r.random() < 0.6 else case


def _saved(r: Random, case: Case) -> Case:
    return case.but(contexts=(*case.contexts, f"saved({r.choice(pools.SAVED)!r})"))


def _backward(r: Random, case: Case) -> Case:
    choice = r.randrange(4)
    if choice == 0:
        return case.but(hook=r.choice(pools.HOOKS), plan="backward")
    if choice == 1:
        return case.but(around=(r.choice(pools.AROUND),), plan=r.choice(["backward", "grad", "sum"]))
    return case.but(plan=r.choice(pools.PLANS))


def _edit(r: Random, case: Case) -> Case:
    return case.but(edit=r.choice([edit for edit in pools.EDITS if can_edit(edit, case)]), plan="backward")


def _alias(r: Random, case: Case) -> Case:
    return case.but(alias=r.choice(pools.ALIASES))


def _wrong(r: Random, case: Case) -> Case:
    """Something that does not fit."""
    choice = r.randrange(6)
    if choice == 0:
        name = r.choice([*case.tensors])
        return case.tensor(name, dtype=r.choice(pools.WRONG_DTYPES))
    if choice == 1:
        names = [n for n in case.tensors if n not in ("x", "dy")]
        if not names:
            return case
        name, c = r.choice(names), channels(case)
        size = r.choice([(c + 1,), (max(0, c - 1),), (1,), (0,), (), (c, 1), (1, c), (*case.shape, 1), case.shape[1:]])
        return case.tensor(name, size=size)
    if choice == 2:
        return case.but(part=r.choice([0, -1, 5, 7]))
    if choice == 3:
        return case.but(eps=r.choice(pools.WRONG_EPS))
    if choice == 4:
        return case.but(momentum=r.choice(pools.WRONG_MOMENTA))
    return case.but(activation=r.choice(pools.WRONG_ACTIVATIONS))


def _buffers(r: Random, case: Case) -> Case:
    """Running statistics of an odd kind."""
    names = [n for n in ("running_mean", "running_var") if n in case.tensors]
    if not names:
        return case
    dtype = r.choice(pools.BUFFER_DTYPES)
    both = r.random() < 0.7
    for name in names if both else names[:1]:
        array = case.tensors[name]
        case = case.with_tensor(name, dataclasses.replace(array, dtype=dtype, layout=r.choice(pools.VECTOR_LAYOUTS)))
    if r.random() < 0.2:
        case = case.but(wanted=(*case.wanted, names[-1]))
    return case


_INGREDIENTS = {
    _nothing: 25,
    _trick: 16,
    _context: 12,
    _transform: 12,
    _after: 8,
    _saved: 7,
    _backward: 12,
    _edit: 6,
    _alias: 3,
    _wrong: 8,
    _buffers: 5,
}
