"""Figures as data: the JSON round trip, what merges and what does not, what the summaries say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from normkit.bench.page import render
from normkit.bench.results import Document, machine
from normkit.bench.summary import LARGE, SUITE, summaries
from normkit.bench.tables import Table, rows_table, summary_table
from normkit.errors import UsageError
from tests.bench.rows import MACHINE, NETWORK, document, row

DOCS = Path(__file__).parents[2] / "docs"


def test_json_round_trip() -> None:
    figures = document(row(), row((1024, 256), layout="NC"))
    assert Document.from_json(figures.to_json()) == figures


def test_a_row_is_a_line_of_the_file() -> None:
    lines = document(row(), row((1024, 256), layout="NC")).to_json().splitlines()
    assert [line.startswith('{"case"') for line in lines].count(True) == 2
    assert len(lines) == 14  # braces, format, machine, two lists with their brackets, three empty ones


def test_an_unknown_format_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="format 1, got 7: measure into a new file"):
        Document.from_json('{"format": 7}')


def test_a_newer_row_replaces_its_namesake_and_keeps_the_rest() -> None:
    old = document(row(ratio=1.0), row((1024, 256), layout="NC"))
    merged = old.merged(Document(MACHINE, (row(ratio=3.0),), (replace(NETWORK, share=0.3), replace(NETWORK, batch=32))))
    assert [r.peers["torch"].total for r in merged.rows] == [3.0, 2.0]
    assert [(n.batch, n.share) for n in merged.networks] == [(8, 0.3), (32, 0.25)]


def test_figures_of_two_machines_do_not_mix() -> None:
    with pytest.raises(UsageError, match="choose another --json file"):
        document(row()).merged(Document({**MACHINE, "cpu": "Another CPU"}))


def test_the_machine_is_named_by_what_it_is() -> None:
    import socket

    facts = machine()
    assert set(facts) == set(MACHINE)
    assert socket.gethostname() not in facts.values()


def test_a_summary_is_a_geometric_mean_with_the_worst_shape_named() -> None:
    (summary,) = summaries([row((8, 64, 56, 56), 4.0), row((2, 512, 14, 14), 1.0, share=0.25)])
    assert (summary.ratio, summary.worst, summary.worst_shape) == (pytest.approx(2.0), 1.0, (2, 512, 14, 14))


def test_a_limit_is_quoted_where_every_row_has_one() -> None:
    rows = [row((8, 64, 56, 56), limit=4.0), row((2, 512, 14, 14), limit=1.0)]
    assert [summaries(found)[0].limit for found in (rows, [*rows, row((2, 8, 3, 3))])] == [pytest.approx(2.0), None]
    (line,) = rows_table(rows[:1]).cells
    assert line[-1] == "2.00 of 4.00 (3.00, 1.50)"


def test_shares_leave_out_tensors_below_a_megabyte() -> None:
    (summary,) = summaries([row((8, 64, 56, 56), share=0.8), row((16, 8, 2, 2), share=0.01)])
    assert (summary.share, summary.worst_share_shape) == (pytest.approx(0.8), (8, 64, 56, 56))


def test_nhwc_batch_norm_is_held_to_two_sweeps_and_group_norm_is_not() -> None:
    batch, group = summaries([row(layout="NHWC", share=0.5), row(layout="NHWC", share=0.5, op="group_norm")])
    assert (batch.share, group.share) == (pytest.approx(0.8), pytest.approx(0.5))


def test_outputs_beyond_32_megabytes_are_summed_up_once_more() -> None:
    found = summaries([row((8, 64, 56, 56), 2.0), row((32, 256, 56, 56), 8.0)])
    assert {s.scope: s.ratio for s in found} == {SUITE: pytest.approx(4.0), LARGE: pytest.approx(8.0)}


def test_a_peer_without_a_figure_gets_a_dash() -> None:
    both = [row(peers=("torch", "onednn")), row((8, 8, 7, 7))]
    assert [line[-1] for line in rows_table(both).cells] == ["2.00 (3.00, 1.50)", "-"]


def test_tables_line_up_and_escape_nothing() -> None:
    table = Table(("a", "bb"), (("long name", "1"), ("x", "22")))
    assert table.text() == "a          bb\nlong name   1\nx          22"
    assert table.markdown() == "| a | bb |\n| --- | --: |\n| long name | 1 |\n| x | 22 |"


def test_the_page_holds_the_machine_every_row_and_the_network() -> None:
    page = render(document(row(), row(layout="NHWC"), row((1024, 256), layout="NC")).to_json())
    assert "on: A CPU, 2 cores, avx2" in page
    assert summary_table([row()]).markdown().splitlines()[2] in page
    for expected in ("## batch_norm, NHWC, float32, 2 threads", "| 1024x256 |", "1.150 (1.100-1.200)"):
        assert expected in page


def test_the_page_in_docs_is_what_its_figures_say() -> None:
    figures = (DOCS / "data" / "benchmarks.json").read_text(encoding="utf-8")
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == render(figures)


def test_beside_busy_processes_the_figure_is_of_the_means_and_stands_apart() -> None:
    quiet = row(ratio=3.0)
    peer = replace(quiet.peers["torch"], mean=0.5)
    beside = replace(quiet, case=replace(quiet.case, busy=1), peers={"torch": peer})
    found = {s.conditions: s.ratio for s in summaries([replace(quiet, peers={"torch": peer}), beside])}
    assert found == {"quiet": pytest.approx(3.0), "1 busy": pytest.approx(0.5)}
    assert "mean 0.50" in rows_table([beside]).text()
    assert "mean" not in rows_table([quiet]).text()
