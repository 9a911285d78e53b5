"""The five lines that docs/benchmarks.md opens with."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tools.benchmark_chart import chart

from normkit.bench.gains import conditions, gains, gains_table
from normkit.bench.results import Row

from .rows import document, row


def under(made: Row, mean: float | None = None, **case: object) -> Row:
    peer = replace(made.peers["torch"], mean=mean)
    return replace(made, case=replace(made.case, **case), peers={"torch": peer})  # type: ignore[arg-type]  # of a Case


ROWS = [
    row((8, 64, 8, 8), ratio=2.0),
    row((8, 64, 4, 4), ratio=9.0),  # not measured cold: no part of the line
    row((8, 64, 8, 8), ratio=3.0, layout="NHWC"),
    under(row((8, 64, 8, 8), ratio=1.5), cold=True),
    under(row((8, 64, 8, 8), ratio=1.2, layout="NHWC"), cold=True),
    under(row((8, 64, 8, 8), ratio=7.0), busy=1, mean=4.0),
    under(row((8, 64, 8, 8), ratio=7.0, layout="NHWC"), busy=1, mean=5.0),
]


def test_a_line_compares_the_shapes_that_every_condition_has() -> None:
    assert conditions(ROWS) == ["cold", "quiet", "1 busy"]
    (line,) = gains(ROWS)
    assert (line.name, line.shapes) == ("batch norm", 1)
    assert line.ratios["quiet"] == {"NCHW": pytest.approx(2.0), "NHWC": pytest.approx(3.0)}
    assert line.ratios["1 busy"] == {"NCHW": pytest.approx(4.0), "NHWC": pytest.approx(5.0)}, "of the means"
    assert gains_table(ROWS).cells == (("batch norm", "1", "1.5 / 1.2", "2.0 / 3.0", "4.0 / 5.0"),)


def test_the_chart_names_every_line_and_condition_and_is_the_same_each_time() -> None:
    figures = document(*ROWS).to_json()
    drawn = chart(figures)
    assert drawn == chart(figures)
    for expected in ("batch norm, NCHW", "batch norm, NHWC", "cold", "quiet", "1 busy", "4.0"):
        assert f">{expected}</text>" in drawn
