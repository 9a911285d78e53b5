"""What a layer gets from a norm of another framework: tensors laid out as its own, eps, momentum, a word on each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..model.families import BATCH_FAMILIES, family, rank
from ..model.kept_tensor import overwrite
from ..model.select import Site
from ..model.swap import parametrized
from .facts import Facts
from .foreign_norm import ForeignNorm, vector
from .report import LoadedNorm

_FAMILY = {"layer2d": "layer", **dict.fromkeys(BATCH_FAMILIES, "batch")}
_IDENTITY = {"weight": 1.0, "bias": 0.0}
_TORCH_EPS, _TORCH_MOMENTUM = 1e-5, 0.1


@dataclass(frozen=True)
class Given:
    """What the caller says: eps, keeps and values are for one layer, by its names, or for all."""

    eps: float | Mapping[str, float] | None
    keeps: float | Mapping[str, float] | None
    values: int | Mapping[str, int] | None

    def verify(self, sites: Iterable[Site]) -> None:
        """ValueError for a layer that nothing is loaded into, and for a number that none of them can be."""
        names = {name for site in sites for name in site.names}
        for argument, given, fits, range_ in (
            ("eps", self.eps, lambda n: 0 <= n < math.inf, "0 or more"),
            ("momentum", self.keeps, lambda n: 0 <= n <= 1, "from 0 to 1"),
            ("values", self.values, lambda n: isinstance(n, int) and n > 1, "a whole number, 2 or more"),
        ):
            numbers = given if isinstance(given, Mapping) else {} if given is None else {"": given}
            if isinstance(given, Mapping) and not given.keys() <= names:
                unknown = ", ".join(sorted(given.keys() - names))
                raise ValueError(f"{argument}= names {unknown}, which nothing is loaded into")
            for number in numbers.values():
                if isinstance(number, bool) or not isinstance(number, (int, float)) or not fits(number):
                    raise ValueError(f"{argument} must be {range_}, got {number!r}")

    def of(self, what: str, site: Site) -> Any:
        found = getattr(self, what)
        if isinstance(found, Mapping):
            return next((found[name] for name in site.names if name in found), None)
        return found


@dataclass(frozen=True)
class Planned:
    """The tensors of a layer that will be written, their new values (in their dtype), and its settings."""

    module: nn.Module
    targets: dict[str, Tensor]
    new: dict[str, Tensor]
    settings: dict[str, float]
    fixed: tuple[nn.Parameter, ...]
    report: LoadedNorm

    def write(self) -> None:
        for name, target in self.targets.items():
            overwrite(target, self.new[name])
        for name, value in self.settings.items():
            setattr(self.module, name, value)
        for parameter in self.fixed:
            parameter.requires_grad_(False)


def plan(site: Site, norm: ForeignNorm, facts: Facts, given: Given) -> Planned:
    """Everything computed and checked, nothing written. ValueError, which names both, for what does not fit."""
    return _Plan(site, norm, facts, given).made()


def verify_shared(plans: Iterable[Planned]) -> None:
    """ValueError where two layers share a tensor and would get different values for it."""
    taken: dict[int, tuple[str, str, Tensor]] = {}
    for planned in plans:
        for name, target in planned.targets.items():
            key, (layer, origin) = id(target), (planned.report.name, planned.report.origin)
            other, other_origin, value = taken.setdefault(key, (layer, origin, planned.new[name]))
            if not torch.equal(value, planned.new[name]):
                raise ValueError(
                    f"{layer} and {other} share {name}, and {origin} and {other_origin} have different values for it; "
                    "nothing was loaded"
                )


class _Plan:
    def __init__(self, site: Site, norm: ForeignNorm, facts: Facts, given: Given) -> None:
        self.site, self.norm, self.facts, self.given = site, norm, facts, given
        self.module: Any = site.module
        kind = family(site.module) or ""
        self.family = _FAMILY.get(kind, kind)
        self.notes = list(norm.notes)
        self.targets: dict[str, Tensor] = {}
        self.new: dict[str, Tensor] = {}
        self.fixed: list[nn.Parameter] = []

    def made(self) -> Planned:
        if parametrized(self.module):
            raise self.error("has a parametrized weight: load before torch.nn.utils.parametrize is applied")
        self.verify_family()
        self.affine("weight", self.norm.weight)
        self.affine("bias", self.norm.bias)
        self.statistics()
        eps = self.setting("eps", "eps", self.family_eps(), _TORCH_EPS)
        settings = {"eps": eps}
        if self.family == "batch" and self.norm.tracked and isinstance(getattr(self.module, "momentum", None), float):
            settings["momentum"] = self.setting("momentum", "keeps", self.facts.keeps, _TORCH_MOMENTUM)
        what = tuple(self.targets)
        report = LoadedNorm(self.site.name, self.norm.name, what, eps, settings.get("momentum"), tuple(self.notes))
        return Planned(self.module, self.targets, self.new, settings, tuple(self.fixed), report)

    def verify_family(self) -> None:
        """Layer, group, instance and RMS norms may have the same arrays, and what they compute differs.

        What keeps statistics evaluates by them, whatever its class.
        """
        theirs, groups = self.norm.family, self.norm.groups
        if theirs is None or self.norm.tracked:
            return
        channels = next((t.numel() for t in (self.norm.weight, self.norm.bias) if t is not None), None)
        own = getattr(self.module, "num_groups", None)
        own = channels if self.family == "instance" else own
        groups = channels if groups == -1 or theirs == "instance" else groups
        if "group" in (theirs, self.family) and {theirs, self.family} <= {"group", "instance"}:
            if None in (own, groups) or own == groups:
                return
            raise self.error(f"normalizes {own} groups of channels, and {self.norm.name} {groups}")
        if theirs != self.family:
            raise self.error(f"is {_norm(self.family)}, and {self.norm.name} {_norm(theirs)}")

    def affine(self, name: str, value: Tensor | None) -> None:
        target = getattr(self.module, name, None)
        if target is None:
            if value is not None and not bool((value == _IDENTITY[name]).all()):
                raise self.error(f"has no {name}, and {self.norm.name} has one that does something")
            return
        if value is None:
            value = torch.full(tuple(self.ready(name, target).shape), _IDENTITY[name], dtype=torch.float64)
            self.notes.append(f"{name} fixed at {_IDENTITY[name]:g}: it takes no gradient")
            if isinstance(target, nn.Parameter):
                self.fixed.append(target)
        self.put(name, target, value)

    def statistics(self) -> None:
        own = {name: self.module._buffers.get(name) for name in ("running_mean", "running_var")}
        keeps = all(buffer is not None for buffer in own.values())
        if not self.norm.tracked:
            if keeps:
                raise self.error(f"keeps running statistics, and {self.norm.name} has none")
            return
        if not keeps:
            raise self.error(f"keeps no running statistics, and {self.norm.name} does")
        assert self.norm.mean is not None
        assert self.norm.var is not None
        if bool((self.norm.var < 0).any()):
            raise self.error(f"would get the negative variance of {self.norm.name}")
        self.put("running_mean", own["running_mean"], self.norm.mean)
        self.put("running_var", own["running_var"], self.norm.var * self.correction())
        counter = self.module._buffers.get("num_batches_tracked")
        if self.norm.counter is not None and counter is not None:
            self.targets["num_batches_tracked"] = counter
            self.new["num_batches_tracked"] = torch.tensor(self.norm.counter)

    def correction(self) -> float:
        """What the running variance is multiplied by: m / (m - 1) where it is biased and m is known."""
        values = self.given.of("values", self.site)
        variance = self.facts.variance
        if variance == "fused":
            variance = "unbiased" if rank(self.module) == 2 else "biased"
        if variance == "unbiased" or values is None:
            self.notes += [] if variance == "unknown" else [f"running_var {variance}, as it was"]
            return 1.0
        self.notes.append(f"running_var unbiased: times {values} / {values - 1}")
        return values / (values - 1)

    def put(self, name: str, target: Any, value: Tensor) -> None:
        ready = self.ready(name, target)
        laid_out = self.laid_out(name, value, tuple(ready.shape))
        new = laid_out.to(ready.dtype)
        if not bool(new.isfinite().all()):
            raise self.error(f"has {name} in {ready.dtype}, which cannot hold the values of {self.norm.name}")
        self.targets[name], self.new[name] = ready, new

    def ready(self, name: str, target: Any) -> Tensor:
        if is_lazy(target):
            raise self.error("is lazy and has no shape yet: run the model once first")
        if target.is_meta:
            raise self.error(f"has {name} on the meta device: model.to_empty(device='cpu') first")
        return target

    def laid_out(self, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            value = vector(value)
        moved = value.movedim(-1, 0) if self.facts.channels_last and value.dim() == len(shape) > 1 else None
        if moved is not None and tuple(moved.shape) == shape:
            if tuple(value.shape) != shape:
                self.notes.append(f"{name}: channels from the last axis to the first")
                return moved
            if len(shape) > 2 and not torch.equal(moved, value):
                raise self.error(
                    f"has {name} of shape {shape}, and {self.norm.name} too: where all axes have one size nothing "
                    "tells whether the channels come first or last; leave it out and copy that one by hand"
                )
        if tuple(value.shape) != shape:
            raise self.error(f"has {name} of shape {shape}, and {self.norm.name} has {tuple(value.shape)}")
        return value

    def family_eps(self) -> float | None:
        return self.facts.eps.get(self.family) if self.norm.eps_default is None else self.norm.eps_default

    def setting(self, name: str, key: str, default: float | None, torchs: float) -> float:
        """eps, or momentum: what the caller says, else the state, else the framework's default.

        A layer whose own value is neither that default nor PyTorch's was given it on purpose: then somebody has to say.
        """
        turned: Callable[[float], float] = (lambda kept: round(1 - kept, 12)) if key == "keeps" else float
        own = getattr(self.module, name, None)
        given, told = self.given.of(key, self.site), getattr(self.norm, key)
        if given is not None:
            origin, value = "as given", turned(given)
        elif told is not None:
            origin, value = "as the state says", turned(told)
        elif default is not None:
            origin, value = f"{self.facts.title}'s default, as the state does not say", turned(default)
            if own is not None and not _near(own, value) and not _near(own, torchs):
                raise self.error(
                    f"has {name}={own:g}, {self.facts.title}'s default is {value:g}, and the state does not "
                    f"say: pass {name}=, in the convention of {self.facts.title}"
                )
        else:
            return float(own) if own is not None else torchs
        self.notes.append(f"{name} {origin}")
        return value

    def error(self, what: str) -> ValueError:
        name = self.site.name or "the model itself"
        return ValueError(f"{name} ({type(self.module).__name__}) {what}; nothing was loaded")


def _norm(kind: str) -> str:
    return {"rms": "an RMS norm", "instance": "an instance norm"}.get(kind, f"a {kind} norm")


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))
