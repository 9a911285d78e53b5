"""`normkit bench --ranks`: two real ranks on small norms, and what is made of the figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from normkit.bench import over_ranks, rank
from normkit.bench.results import Document
from normkit.bench.sync_figures import Collective, Synchronised, Way
from normkit.bench.sync_tables import collectives_table, synchronised_table
from normkit.cli import main
from tests.bench.rows import MACHINE

CHANNELS = 26_560  # of ResNet-50's 53 norms together
WAY = Way(1.0, 2.0, 106, 850_000, 1.5, 1.4, 1.6)
FIGURES = Synchronised(2, 2, 32, 1, 53, 5, 0.5, {"normkit": WAY, "torch, local": WAY})
POINT = Collective(2, "all_gather", 64, 101, 123.4, 100.0, 150.0)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store is for POSIX here")
def test_two_ranks_give_figures_and_exact_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(over_ranks.SHARES, "quick", (2, 32))
    path = tmp_path / "f.json"
    assert main(["bench", "--ranks", "2", "--seconds", "0", "--threads", "1", "--json", str(path)]) == 0
    found = Document.from_json(path.read_text())
    assert {(one.kind, one.bytes) for one in found.collectives} == {
        (kind, size) for kind in ("all_gather", "all_reduce") for size in rank.SIZES
    }
    assert all(0 < one.low <= one.us <= one.high for one in found.collectives)
    (figures,) = found.synchronised
    assert (figures.ranks, figures.norms, figures.threads) == (2, 53, 1)
    assert set(figures.ways) == set(rank.WAYS)
    assert all(way.forward_ms > 0 and way.backward_ms > 0 for way in figures.ways.values())
    given = {name: (way.collectives, way.bytes) for name, way in figures.ways.items()}
    assert given["normkit"] == (106, 8 * (4 * CHANNELS + 53))
    assert given["torch's algorithm"] == (106, 4 * (4 * CHANNELS + 53))
    assert given["normkit, local"] == given["torch, local"] == (0, 0)
    assert figures.ways["normkit"].ratio == 1.0
    assert "torch's algorithm" in capsys.readouterr().out


def test_the_norms_are_resnet_50s() -> None:
    shapes = rank.norm_shapes(2, 224)
    assert len(shapes) == 53
    assert sum(shape[1] for shape in shapes) == CHANNELS
    assert shapes[0] == (2, 64, 112, 112)
    assert shapes[-1] == (2, 2048, 7, 7)


def test_figures_survive_the_file_and_a_newer_one_replaces_its_namesake() -> None:
    old = Document(MACHINE, collectives=(POINT,), synchronised=(FIGURES,))
    assert Document.from_json(old.to_json()) == old
    newer = Collective(2, "all_gather", 64, 101, 99.0, 98.0, 100.0)
    merged = old.merged(Document(MACHINE, collectives=(newer, Collective(4, "all_gather", 64, 101, 9.0, 8.0, 10.0))))
    assert [one.us for one in merged.collectives] == [99.0, 9.0]
    assert merged.synchronised == (FIGURES,)


def test_tables_say_what_was_measured() -> None:
    assert collectives_table([POINT]).cells == (("all_gather", "64", "123 (100-150)"),)
    ours, local = synchronised_table([FIGURES]).cells
    assert ours == ("normkit", "2", "2", "32", "1", "0.5", "1", "2", "106", "850", "")
    assert local[-1] == "1.50 (1.40-1.60)"


REFUSED = {
    "one": (["--ranks", "1"], "--ranks must be 2 to 64 processes, got 1"),
    "many": (["--ranks", "2,65"], "--ranks must be 2 to 64 processes, got 65"),
    "text": (["--ranks", "two"], "--ranks must be whole numbers with a comma between, got 'two'"),
    "family": (["batch_norm", "--ranks", "2"], "--ranks takes no families"),
    "busy": (["--busy", "1", "--ranks", "2"], "--ranks takes no families"),
}


@pytest.mark.parametrize(("arguments", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert text in capsys.readouterr().err
