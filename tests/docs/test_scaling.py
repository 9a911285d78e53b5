"""The cost model of docs/scaling.md: its formulas, its fit, and the page that is made of two data files."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from tools.scaling.model import ALGORITHMS, NETWORKS, Fit, fit, steps, wire
from tools.scaling.page import channels, render

from normkit.bench.results import Document
from normkit.bench.sync_figures import Collective

DATA = Path(__file__).parents[2] / "docs" / "data"
FIGURES, CURVE = ((DATA / name).read_text(encoding="utf-8") for name in ("scaling.json", "sync_span.json"))


@pytest.mark.parametrize(
    ("kind", "algorithm", "ranks", "expected"),
    [
        ("all_gather", "ring", 4, (3, 300.0)),
        ("all_gather", "tree", 5, (3, 400.0)),
        ("all_reduce", "ring", 4, (6, 150.0)),
        ("all_reduce", "tree", 8, (6, 200.0)),
    ],
)
def test_steps_and_bytes(kind: str, algorithm: str, ranks: int, expected: tuple[int, float]) -> None:
    assert (steps(kind, algorithm, ranks), wire(kind, algorithm, ranks, 100.0)) == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", ["all_gather", "all_reduce"])
@pytest.mark.parametrize("coefficients", [(20.0, 35.0, 2e-3), (0.0, 35.0, 2e-3), (20.0, 35.0, 0.0)])
def test_the_fit_finds_what_made_the_points(
    kind: str, algorithm: str, coefficients: tuple[float, float, float]
) -> None:
    made = Fit(kind, algorithm, *coefficients)
    points = [
        Collective(ranks, kind, size, 9, made.time(ranks, size), 0.0, 0.0)
        for ranks, size in product((2, 3, 4), (64, 4096, 1 << 20))
    ]
    found = fit(points, kind, algorithm)
    assert (found.start, found.latency, found.per_byte) == pytest.approx(coefficients, rel=1e-6, abs=1e-6)
    assert max(map(abs, found.residuals(points))) < 1e-9


def test_no_coefficient_is_negative_where_more_ranks_are_faster() -> None:
    points = [Collective(ranks, "all_reduce", 64, 9, 100.0 / ranks, 0.0, 0.0) for ranks in (2, 3, 4)]
    found = fit(points, "all_reduce", "ring")
    assert min(found.start, found.latency, found.per_byte) == 0.0
    assert max(found.start, found.latency, found.per_byte) > 0.0


def test_a_network_is_its_published_figures_put_together() -> None:
    nvlink, ethernet = NETWORKS
    assert nvlink.time("all_gather", "ring", 8, 0.0) == pytest.approx(3.6 + 7 * 0.47)
    assert ethernet.time("all_gather", "ring", 8, 0.0) == nvlink.time("all_gather", "ring", 8, 0.0), "one node"
    assert ethernet.time("all_reduce", "tree", 64, 0.0) == pytest.approx(4.4 + 2 * (7 * 1.8 * 0.52 + 3 * 5.0))
    assert ethernet.time("all_gather", "ring", 64, 0.0) == pytest.approx(3.6 + 56 * 1.8 * 0.47 + 7 * 2.7)
    sent = ethernet.time("all_reduce", "tree", 64, 1e6) - ethernet.time("all_reduce", "tree", 64, 0.0)
    assert sent == pytest.approx(2e6 / (50e3 / 3.8))


def test_more_ranks_and_more_bytes_take_longer() -> None:
    for network, kind in product(NETWORKS, ("all_gather", "all_reduce")):
        by_ranks = [network.best(kind, ranks, 4096.0) for ranks in (8, 64, 512, 4096)]
        assert by_ranks == sorted(by_ranks)
        assert network.best(kind, 64, 8192.0) > network.best(kind, 64, 4096.0)


def test_the_page_is_what_its_data_say() -> None:
    page = (DATA.parent / "scaling.md").read_text(encoding="utf-8")
    assert page == render(FIGURES, CURVE)
    document, study = Document.from_json(FIGURES), json.loads(CURVE)
    for point in document.collectives:
        assert f"| {point.kind} | {point.ranks} | {point.bytes} |" in page
    assert all(f"shared by {span} |" in page for span in study["running"])
    assert (len(channels()), sum(channels())) == (53, 26_560)
