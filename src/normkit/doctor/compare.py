"""What happened to the norms between two states of a model: `nk.compare`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ..model.table import Table, Tabular
from ..statistics.distance import distance
from .checkpoint import state_of
from .finding import WHOLE, rounded
from .state import NormState, of_model

_COLUMNS = ("layer", "statistics", "gamma", "beta", "batches", "settings", "what")
DEFAULT_EPS = 1e-5  # of layers from a file, which does not say theirs


@dataclass(frozen=True)
class NormChange:
    """One norm. what: "same", "changed", "added", "removed" or "reshaped".

    statistics: root mean square distance over the channels between both pairs of running statistics, in units of
    sqrt(running_var + eps) before. gamma, beta: root mean square difference. batches: that were counted between.
    settings: those that differ, "eps 0.001 -> 1e-05". None: not there, or not finite.
    """

    name: str
    what: str
    statistics: float | None = None
    gamma: float | None = None
    beta: float | None = None
    batches: float | None = None
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison(Tabular):
    """All norms of both states, in the order of the first one; added ones last."""

    norms: tuple[NormChange, ...]

    def __iter__(self) -> Iterator[NormChange]:
        return iter(self.norms)

    def __len__(self) -> int:
        return len(self.norms)

    def __getitem__(self, name: str) -> NormChange:
        for norm in self.norms:
            if norm.name == name:
                return norm
        raise KeyError(name)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return all(norm.what == "same" for norm in self.norms)

    def to_json(self) -> str:
        return json.dumps({"norms": [asdict(norm) for norm in self.norms]}, allow_nan=False, indent=1)

    def table(self) -> Table:
        counts = Counter(norm.what for norm in self.norms)
        note = ", ".join(f"{count} {what}" for what, count in counts.items()) or "no norms"
        rows = tuple(map(_row, self.norms))
        return Table(_COLUMNS, rows, tuple(norm.what == "same" for norm in self.norms), (note,))


def compare(before: nn.Module | Mapping[str, Any], after: nn.Module | Mapping[str, Any]) -> Comparison:
    """What happened to each norm between two states of a model: statistics, gamma and beta, counters, settings.

    Args:
        before, after: models, or state dicts (a file says neither eps nor momentum: they are not compared then), or
            mappings of names to state dicts.

    Returns: a :class:`Comparison`; printable, with `to_json()`.

    Raises TypeError for what is neither a model nor a mapping.
    """
    old, new = _norms(before), _norms(after)
    found = [_change(norm, new.get(name)) for name, norm in old.items()]
    found += [NormChange(name, "added") for name in new if name not in old]
    return Comparison(tuple(found))


def _norms(model: nn.Module | Mapping[str, Any]) -> dict[str, NormState]:
    if isinstance(model, nn.Module):
        return {norm.name: norm for norm in of_model(model).norms}
    if isinstance(model, Mapping):
        return {norm.where: norm for norm in state_of(model).norms}
    raise TypeError(f"expected a model (a torch.nn.Module) or a state dict, got {model!r:.200}")


def _change(old: NormState, new: NormState | None) -> NormChange:
    if new is None:
        return NormChange(old.where, "removed")
    pairs = [(old.mean, new.mean), (old.var, new.var), (old.weight, new.weight), (old.bias, new.bias)]
    if any(a is not None and b is not None and a.shape != b.shape for a, b in pairs):
        return NormChange(old.where, "reshaped")
    statistics = _statistics(old, new)
    gamma, beta = (_difference(a, b) for a, b in pairs[2:])
    batches = None if old.counter is None or new.counter is None else new.counter - old.counter
    settings = tuple(
        f"{name} {getattr(old, name)} -> {getattr(new, name)}"
        for name in ("kind", "eps", "momentum", "tracks", "training")
        if not {"norm", "norm with running statistics"} & {old.kind, new.kind}
        and (name in ("eps", "momentum") or (old.graph is None and new.graph is None))
        and getattr(old, name) != getattr(new, name)
    )
    same = not settings and all(value in (None, 0.0) for value in (statistics, gamma, beta, batches))
    missing = any((a is None) != (b is None) for a, b in pairs)
    what = "same" if same and not missing else "changed"
    moved, scaled, shifted, counted = (rounded(value) for value in (statistics, gamma, beta, batches))
    return NormChange(old.where, what, moved, scaled, shifted, counted, settings)


def _statistics(old: NormState, new: NormState) -> float | None:
    if old.mean is None or old.var is None or new.mean is None or new.var is None:
        return None
    eps = DEFAULT_EPS if old.eps is None else old.eps
    return float(distance(new.mean, new.var, old.mean, old.var, eps).square().mean().sqrt())


def _difference(a: Tensor | None, b: Tensor | None) -> float | None:
    return None if a is None or b is None else float((a - b).square().mean().sqrt())


def _row(norm: NormChange) -> tuple[str, ...]:
    numbers = (norm.statistics, norm.gamma, norm.beta, norm.batches)
    shown = ("" if value is None or math.isnan(value) else f"{value:.3g}" for value in numbers)
    return (norm.name or WHOLE, *shown, "; ".join(norm.settings), norm.what)
