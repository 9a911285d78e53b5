"""A case: which norm, on which tensors, under what circumstances. Plain data; every field has a simplest value.

Texts in it (`eps`, `activation`, `contexts`) are source, so that what cannot be drawn as a number (None, a module, a
string where a number belongs) can be said.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

TENSORS = ("x", "weight", "bias", "running_mean", "running_var", "residual", "dy", "scale", "shift")  # in this order


@dataclass(frozen=True)
class Array:
    """One tensor. values, layout: functions of `values.py`; trick: one of `tricks.py`, applied before the call; size: a
    shape other than the fitting one, or None; form: of a modulation, one of `modulation.FORMS`."""

    values: str = "normal"
    dtype: str = "float32"
    layout: str = "contiguous"
    trick: str = ""
    size: tuple[int, ...] | None = None
    form: str = ""


@dataclass(frozen=True)
class Case:
    """One program. A field that does not concern the norm is ignored; `generate.fit` puts it at its simplest value.

    norm: a name of `norms.NORMS`. layer: called as a layer, not as a function. part: number of groups, of normalized
    axes, or of samples in a slice; of a layer's spatial axes where it counts nothing else. tensors: by the names of
    `TENSORS`; absent ones are not given. alias: which two are one tensor. mask, transform (how the norm is called),
    after (what the model does with the output), hook (what happens to the output's gradient), plan (how the backward
    is run), edit (a statement between forward and backward): keys of the tables of `program.py`. wanted: whose
    gradients are asked for. contexts, around: context managers around the forward and the backward.
    """

    norm: str = "batch_norm"
    layer: bool = False
    shape: tuple[int, ...] = (2, 3, 4)
    part: int = 1
    training: bool = True
    tensors: dict[str, Array] = field(default_factory=lambda: {"x": Array(), "dy": Array()})
    alias: str = ""
    mask: str = ""
    activation: str = ""
    eps: str = "1e-05"
    momentum: str = "0.1"
    wanted: tuple[str, ...] = ("x",)
    contexts: tuple[str, ...] = ()
    around: tuple[str, ...] = ()
    transform: str = ""
    after: str = ""
    hook: str = ""
    plan: str = "backward"
    edit: str = ""
    threads: int = 1

    def but(self, **changes: Any) -> Case:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)

    def with_tensor(self, name: str, array: Array | None) -> Case:
        """The same with one tensor changed, or absent."""
        tensors = {key: value for key, value in self.tensors.items() if key != name}
        if array is not None:
            tensors[name] = array
        return self.but(tensors={key: tensors[key] for key in TENSORS if key in tensors})

    def tensor(self, name: str, **changes: Any) -> Case:
        """The same with some properties of one tensor changed."""
        return self.with_tensor(name, dataclasses.replace(self.tensors[name], **changes))


SIMPLEST = Case()


def usual(name: str) -> Array:
    """The simplest tensor of a name: a variance is positive, a weight away from 0."""
    return Array(values={"weight": "param", "scale": "param", "running_var": "var"}.get(name, "normal"))


def features(case: Case) -> frozenset[str]:
    """What is unusual about a case, each as "field=value"; sizes of shapes do not count."""
    found = set()
    for f in dataclasses.fields(Case):
        value, simplest = getattr(case, f.name), getattr(SIMPLEST, f.name)
        if f.name in ("contexts", "around"):
            found |= {f"{f.name}={v}" for v in value}
        elif f.name == "wanted":
            found |= {f"wanted={v}" for v in value if v != "x"}
        elif f.name == "tensors":
            for name, array in value.items():
                if name not in ("x", "dy"):
                    found.add(name)
                for g in dataclasses.fields(Array):
                    if getattr(array, g.name) != getattr(usual(name), g.name):
                        found.add(f"{name}.{g.name}={getattr(array, g.name)}")
        elif f.name != "shape" and value != simplest:
            found.add(f"{f.name}={value}")
    return frozenset(found)
