"""The figures that the project set out to reach, beside what was measured; one table, reached or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .results import Row
from .summary import LARGE, SUITE, Summary, summaries
from .tables import Table, shape


@dataclass(frozen=True)
class Goal:
    """At least `ratio` in the geometric mean and `worst` on every shape."""

    op: str
    layout: str
    ratio: float
    worst: float
    scope: str = SUITE
    peer: str = "torch"
    dtype: str = "float32"


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
    """Every goal that the rows say something about; bfloat16 is to reach what float32 has reached, 1 on every shape."""
    measured = {summary.key: summary for summary in summaries(rows)}

    def found(goal: Goal) -> Summary | None:
        return measured.get((goal.op, goal.layout, goal.dtype, threads, goal.scope, goal.peer))

    halves = [
        replace(goal, ratio=round(full.ratio, 2), worst=1.0, dtype="bfloat16")
        for goal in GOALS
        if goal.scope == SUITE and goal.peer == "torch" and (full := found(goal)) is not None
    ]
    return Table(
        ("figure", "layout", "dtype", "against", "goal", "measured", "limit", "worst goal", "worst", "at", "reached"),
        tuple(_cells(goal, summary) for goal in (*GOALS, *halves) if (summary := found(goal)) is not None),
    )


def _cells(goal: Goal, found: Summary) -> tuple[str, ...]:
    reached = (found.ratio >= goal.ratio, found.worst >= goal.worst)
    return (
        goal.op if goal.scope == SUITE else f"{goal.op}, {goal.scope}", goal.layout, goal.dtype, goal.peer,
        f"{goal.ratio:.2f}", f"{found.ratio:.2f}", "" if found.limit is None else f"{found.limit:.2f}",
        f"{goal.worst:.1f}", f"{found.worst:.2f}", shape(found.worst_shape),
        {(True, True): "yes", (True, False): "mean only", (False, True): "worst only", (False, False): "no"}[reached],
    )  # fmt: skip
