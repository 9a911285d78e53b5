"""The figures that the project set out to reach, beside what was measured; one table, reached or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .results import Row
from .summary import LARGE, SUITE, Summary, summaries
from .tables import Table, shape


@dataclass(frozen=True)
class Goal:
    """At least `ratio` in the geometric mean and `worst` on every shape, float32."""

    op: str
    layout: str
    ratio: float
    worst: float
    scope: str = SUITE
    peer: str = "torch"


def _pair(op: str, nchw: float, nhwc: float, worst: float, scope: str = SUITE, peer: str = "torch") -> list[Goal]:
    return [Goal(op, layout, ratio, worst, scope, peer) for layout, ratio in (("NCHW", nchw), ("NHWC", nhwc))]


GOALS = (
    *_pair("batch_norm", 2.8, 2.2, 1.0),
    *_pair("batch_norm+relu", 3.3, 2.5, 1.2),
    *_pair("batch_norm+add+relu", 3.3, 2.5, 1.2),
    *(goal for op in ("batch_norm", "batch_norm+relu", "batch_norm+add+relu") for goal in _pair(op, 3, 3, 2, LARGE)),
    *_pair("group_norm", 1.5, 2.0, 1.0),
    *_pair("instance_norm", 1.5, 2.0, 1.0),
    Goal("layer_norm", "rows", 1.2, 1.0),
    Goal("rms_norm", "rows", 1.5, 1.0),
    *_pair("inference", 1.2, 1.2, 1.0),
    *_pair("inference+relu", 2.0, 2.0, 1.0),
    *_pair("inference+add+relu", 2.5, 2.5, 1.0),
    *(goal for peer in ("compile", "onednn", "jax") for goal in _pair("batch_norm", 1.5, 1.5, 1.0, peer=peer)),
)


def goals_table(rows: Sequence[Row], threads: int = 2) -> Table:
    """Every goal that the rows say something about."""
    measured = {summary.key: summary for summary in summaries(rows)}
    cells = []
    for goal in GOALS:
        found = measured.get((goal.op, goal.layout, "float32", threads, goal.scope, goal.peer))
        if found is not None:
            cells.append(_cells(goal, found))
    return Table(
        ("figure", "layout", "against", "goal", "measured", "limit", "worst goal", "worst", "at", "reached"),
        tuple(cells),
    )


def _cells(goal: Goal, found: Summary) -> tuple[str, ...]:
    reached = (found.ratio >= goal.ratio, found.worst >= goal.worst)
    return (
        goal.op if goal.scope == SUITE else f"{goal.op}, {goal.scope}", goal.layout, goal.peer, f"{goal.ratio:.1f}",
        f"{found.ratio:.2f}", "" if found.limit is None else f"{found.limit:.2f}", f"{goal.worst:.1f}",
        f"{found.worst:.2f}", shape(found.worst_shape),
        {(True, True): "yes", (True, False): "mean only", (False, True): "worst only", (False, False): "no"}[reached],
    )  # fmt: skip
