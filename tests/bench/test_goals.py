"""The goals beside what was measured."""

from __future__ import annotations

from dataclasses import replace

from normkit.bench.goals import goals_table
from normkit.bench.results import Row
from tests.bench.rows import row


def in_bfloat16(of: Row) -> Row:
    return replace(of, case=replace(of.case, dtype="bfloat16"))


def test_a_goal_has_two_halves() -> None:
    def reached(*ratios: float) -> str:
        shapes = ((8, 64, 56, 56), (8, 128, 28, 28))
        rows = [row(shape, ratio) for shape, ratio in zip(shapes, ratios, strict=True)]
        return goals_table(rows).cells[0][-1]

    assert reached(2.8, 2.8) == "yes"
    assert reached(0.99, 9.0) == "mean only"
    assert reached(1.0, 1.0) == "worst only"
    assert reached(0.99, 0.99) == "no"


def test_bfloat16_is_to_reach_what_float32_has_reached() -> None:
    whole = row(ratio=1.5)
    for ratio, reached in ((1.5, "yes"), (1.49, "worst only")):
        _, half = goals_table([whole, in_bfloat16(row(ratio=ratio))]).cells
        assert half[:5] == ("batch_norm", "NCHW", "bfloat16", "torch", "1.50")
        assert half[-1] == reached


def test_without_float32_there_is_no_goal_for_bfloat16() -> None:
    assert goals_table([in_bfloat16(row())]).cells == ()
