"""What a user gains over torch eager, in five lines: the operations that most models hold, under each condition.

A line compares like with like: only shapes that were measured under every condition are in its figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .problem import Case
from .results import Row
from .summary import figure
from .tables import Table
from .timing import geometric_mean

OPERATIONS = {
    "batch norm": "batch_norm",
    "batch norm + ReLU": "batch_norm+relu",
    "batch norm + add + ReLU": "batch_norm+add+relu",
    "group norm": "group_norm",
    "RMS norm": "rms_norm",
}
_LAYOUTS = ("NCHW", "NHWC", "rows")


@dataclass(frozen=True)
class Gain:
    """Geometric means over the same shapes. ratios: condition -> layout -> how many times torch eager."""

    name: str
    shapes: int
    ratios: dict[str, dict[str, float]]


def conditions(rows: Iterable[Row]) -> list[str]:
    """The conditions that rows were measured under, cold inputs first, then by how many others compute."""
    cases = {row.case.conditions: row.case for row in rows}
    return sorted(cases, key=lambda name: (not cases[name].cold, cases[name].busy))


def gains(rows: Sequence[Row]) -> list[Gain]:
    """A line for each operation that was measured, in float32 with the most threads."""
    rows = [row for row in rows if row.case.dtype == "float32" and "torch" in row.peers]
    threads = max((row.case.threads for row in rows), default=0)
    found = []
    for name, op in OPERATIONS.items():
        ours = [row for row in rows if row.case.op == op and row.case.threads == threads]
        ours = [row for row in ours if row.case.layout in _LAYOUTS]
        wanted = conditions(ours)
        measured = {
            condition: {_what(row.case) for row in ours if row.case.conditions == condition} for condition in wanted
        }
        shared = set.intersection(*measured.values()) if measured else set()
        ratios = {condition: _by_layout(ours, condition, shared) for condition in wanted}
        if shared:
            found.append(Gain(name, len({shape for shape, _ in shared}), ratios))
    return found


def gains_table(rows: Sequence[Row]) -> Table:
    """A cell holds the figures of its layouts: NCHW / NHWC, or the one of rows."""
    lines, wanted = gains(rows), conditions(rows)
    body = [(g.name, str(g.shapes), *(_cell(g.ratios.get(condition, {})) for condition in wanted)) for g in lines]
    return Table(("times torch eager", "shapes", *wanted), tuple(body))


def _what(case: Case) -> tuple[tuple[int, ...], str]:
    return case.shape, case.layout


def _by_layout(rows: Sequence[Row], condition: str, shared: set[tuple[tuple[int, ...], str]]) -> dict[str, float]:
    chosen = [row for row in rows if row.case.conditions == condition and _what(row.case) in shared]
    by_layout = {layout: [figure(row, "torch") for row in chosen if row.case.layout == layout] for layout in _LAYOUTS}
    return {layout: geometric_mean(ratios) for layout, ratios in by_layout.items() if ratios}


def _cell(ratios: dict[str, float]) -> str:
    return " / ".join(f"{ratio:.1f}" for ratio in ratios.values()) or "-"
