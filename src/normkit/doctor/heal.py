"""The safe fixes of a diagnosis, made: through statistics and settings, never through weights.

Rules: only findings above a note are treated, and what follows from them; each number is measured again afterwards;
what is not done is named, with the call that would do it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..model.swap import working_copy
from ..model.table import Table, Tabular
from ..statistics import batches as feeding
from ..statistics.recalibrate import recalibrate
from .evidence import Request
from .finding import WHOLE, Finding
from .report import Report

STATISTICS = frozenset(("NK101", "NK103", "NK104", "NK105", "NK107", "NK108"))  # which exact statistics mend
_ASSIGNMENT = re.compile(r"layer\.(eps|momentum) = ([0-9.e+-]+)$")


@dataclass(frozen=True)
class Treatment:
    """One finding: what was done, or why not; its number before and after, None where there is none. What statistics
    mend is told by the layer's distance from the data's, in sqrt(running_var + eps)."""

    finding: Finding
    done: bool
    what: str
    before: float | None
    after: float | None
    unit: str = ""


@dataclass(frozen=True)
class Healing(Tabular):
    """All treatments, in the order of the findings; what is left above a note afterwards."""

    treatments: tuple[Treatment, ...]
    left: int

    def table(self) -> Table:
        rows = tuple(
            (t.finding.code, t.finding.where or WHOLE, t.what, _number(t.before), _number(t.after))
            for t in self.treatments
        )
        note = f"{sum(t.done for t in self.treatments)} mended, {self.left} left above a note"
        columns = ("rule", "layer", "what", "before", "after")
        return Table(columns, rows, tuple(t.done for t in self.treatments), (note,))


def heal(
    report: Report, model: nn.Module, asked: Request | None, diagnose: Callable[..., Report], inplace: bool
) -> tuple[nn.Module, Healing]:
    """The healed model, and what was done. diagnose: to measure again."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected the model that was diagnosed, got {model!r:.200}")
    findings = _treated(report.findings)
    model = working_copy(model, inplace)
    inner = feeding.unwrapped(model)  # whose names the findings have
    batches = None if asked is None else asked.batches
    done: dict[str, str] = {}
    for finding in findings:
        assigned = _ASSIGNMENT.search(finding.fix)
        if assigned:
            setattr(inner.get_submodule(finding.where), assigned[1], float(assigned[2]))
            done[finding.key] = f"{assigned[1]} = {assigned[2]}"
    sick = [f for f in findings if f.code in STATISTICS and _statistics_can(f)]
    if sick and batches is not None:
        names = list(dict.fromkeys(finding.where for finding in sick))
        which = None if "" in names else _exactly(names)  # the model itself: all of its layers
        made_of = recalibrate(inner, batches, only=which, forward=asked.forward, progress=False)  # type: ignore[union-attr]  # it gave the batches
        made = {layer.name for layer in made_of.recalibrated}
        for finding in sick:
            if finding.where in made:
                done[finding.key] = f"recalibrated from {made_of[finding.where].values:,} values"
            elif not finding.where and made:
                done[finding.key] = f"{len(made)} layers recalibrated"
    given = Request(None, None, None, None) if asked is None else asked
    again = diagnose(model, batches, forward=given.forward, optimizer=given.optimizer, loss_fn=given.loss_fn)
    treatments = tuple(_treatment(finding, done.get(finding.key), report, again) for finding in findings)
    return model, Healing(treatments, len(again.at_least("warning")))


def heal_state(found: Sequence[Finding], content: Mapping[str, Any]) -> tuple[dict[str, Any], Healing]:
    """A checkpoint's content with the fixes that a state allows: counters whole, statistics float32."""
    healed, changed = _rewritten(content)
    treatments = []
    for finding in found:
        own = next((name for name in changed if finding.where and name.endswith(finding.where.split(": ")[-1])), None)
        if own is not None and finding.code in ("NK109", "NK304"):
            treatments.append(Treatment(finding, True, changed[own], finding.measured, None))
        elif finding.severity != "note":
            needs = f"needs the model and batches: {finding.fix}"
            treatments.append(Treatment(finding, False, needs, finding.measured, finding.measured))
    return healed, Healing(tuple(treatments), sum(not t.done for t in treatments))


def _rewritten(content: Mapping[str, Any], place: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    healed: dict[str, Any] = {}
    changed: dict[str, str] = {}
    for key, value in content.items():
        layer, _, name = str(key).rpartition(".")
        healed[key] = value
        if isinstance(value, Mapping):
            healed[key], below = _rewritten(value, f"{place}{key}.")
            changed |= below
        elif isinstance(value, Tensor) and name == "num_batches_tracked" and value.is_floating_point():
            healed[key], changed[place + layer] = value.round().long(), "the counter made an integer"
        elif isinstance(value, Tensor) and name in ("running_mean", "running_var") and value.dtype.itemsize < 4:
            healed[key], changed[place + layer] = value.float(), "statistics made float32"
    return healed, changed


def _treated(found: Sequence[Finding]) -> list[Finding]:
    """What is above a note, and what follows from it."""
    above = [finding for finding in found if finding.severity != "note"]
    keys = {key for finding in above for key in finding.follows}
    return [f for f in found if f in above or f.key in keys]


def _statistics_can(finding: Finding) -> bool:
    return finding.code != "NK108" or finding.fix.startswith("nk.recalibrate")


def _exactly(names: list[str]) -> Callable[[str, nn.Module], bool]:
    """A selector of these layers and of none below them."""
    wanted = frozenset(names)
    return lambda name, _: name in wanted


def _treatment(finding: Finding, what: str | None, before: Report, after: Report) -> Treatment:
    said = what if what is not None else f"not done: {finding.fix}"
    if finding.code in STATISTICS and after.distance(finding.where) is not None:
        numbers = before.distance(finding.where), after.distance(finding.where)
        return Treatment(finding, what is not None, said, *numbers, "sqrt(var + eps)")
    left = next((other.measured for other in after.findings if other.key == finding.key), None)
    return Treatment(finding, what is not None, said, finding.measured, left, finding.unit)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
