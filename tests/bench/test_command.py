"""`normkit bench` from the command line, on a suite of one small shape."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normkit.bench import batch_norm, suite
from normkit.bench import run as command
from normkit.bench.check import Mismatch
from normkit.bench.measure import measure
from normkit.bench.problem import Case
from normkit.bench.results import Document, keep
from normkit.cli import main
from tests.bench.rows import MACHINE, row


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {
        "batch_norm": (((4, 8, 5, 5),), ((16, 8),)),
        "group_norm": (((4, 16, 5, 5),), ()),
        "layer_norm": ((), ((6, 24),)),
        "inference": (((4, 8, 5, 5),), ()),
    }
    monkeypatch.setitem(suite.SUITES, "quick", shapes)


def run(*arguments: str) -> int:
    return main(["bench", "--seconds", "0", "--threads", "1", *arguments])


def test_every_family_gets_its_rows(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json", str(tmp_path / "f.json")) == 0
    rows = Document.from_json((tmp_path / "f.json").read_text()).rows
    assert {row.case.op for row in rows} == set(suite.OPS)
    assert all(row.rounds >= 5 and row.forward_ms > 0 and 0 < row.error <= 1 for row in rows)
    assert all((row.backward_ms > 0) is suite.OPS[row.case.op].training for row in rows)
    printed = capsys.readouterr().out
    assert "batch_norm, NHWC, float32, 1 thread" in printed
    assert "worst" in printed.split("\n\n")[-1]


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}"])
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    assert run("--json", str(path)) == 2
    assert "measure into a new file" in capsys.readouterr().err
    assert path.read_text() == text


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "f.json", "", ".", "..", "/"):
        assert run("--json", str(path)) == 2
        assert "--json must be a file that can be written" in capsys.readouterr().err


def test_runs_fill_one_file(tiny: None, tmp_path: Path) -> None:
    path = tmp_path / "made" / "f.json"
    assert run("layer_norm", "--json", str(path)) == 0
    assert run("layer_norm", "--dtype", "float64", "--json", str(path)) == 0
    assert [row["case"]["dtype"] for row in json.loads(path.read_text())["rows"]] == ["float32"] * 8 + ["float64"] * 8


@pytest.mark.parametrize("finished", [0, 1])
def test_an_interrupt_keeps_the_rows_that_are_there_and_leaves_nothing_else(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    calls = iter(range(9))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == finished:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(command, "measure", interrupted)
    path = tmp_path / "f.json"
    assert run("layer_norm", "--json", str(path)) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"] * finished
    assert len(json.loads(path.read_text())["rows"] if finished else []) == finished


def test_figures_that_another_run_wrote_meanwhile_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    for case in (row(ratio=1.0), row((1024, 256), layout="NC"), row(ratio=3.0)):
        keep(path, Document(MACHINE, (case,)))
    assert [r.peers["torch"].total for r in Document.from_json(path.read_text()).rows] == [3.0, 2.0]


REFUSED = {
    "family": (["batchnorm"], "expected a family out of batch_norm, group_norm, layer_norm, inference, network, got"),
    "peer": (
        ["--peers", "torch,tensorflow"],
        "expected a peer out of torch, compile, onednn, jax, onnx, got 'tensorflow'",
    ),
    "dtype": (["--dtype", "int8"], "expected a dtype out of float32"),
    "threads": (["--threads", "0"], "--threads must be at least 1, got 0"),
    "too many threads": (["--threads", "99999999"], "--threads must be at most 1024, got 99999999"),
    "seconds": (["--seconds", "-1"], "--seconds must not be negative, got -1.0"),
    "no seconds": (["--seconds", "nan"], "--seconds must be finite, got nan"),
}


@pytest.mark.parametrize(("arguments", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert text in capsys.readouterr().err


def test_a_file_of_another_machine_is_refused_before_measuring(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.json"
    path.write_text(Document({"cpu": "another"}).to_json())
    assert run("layer_norm", "--json", str(path)) == 2
    assert "choose another --json file" in capsys.readouterr().err
    assert path.read_text() == Document({"cpu": "another"}).to_json()


class Off(nn.BatchNorm2d):
    """A batch norm that is a little wrong."""

    def __init__(self, channels: int, activation: str | None) -> None:
        super().__init__(channels)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 1.0001


def test_a_wrong_layer_is_an_error_and_not_a_figure(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm.nk, "BatchNorm2d", Off)
    with pytest.raises(Mismatch, match="output of batch_norm"):
        run("batch_norm")


def test_a_peer_that_cannot_serve_a_case_says_why() -> None:
    row = measure(Case("batch_norm", (4, 8, 5, 5), "NHWC"), ("torch", "onednn"), 0.0)
    assert list(row.peers) == ["torch"]
    assert "layout of its own" in row.absent["onednn"]


@pytest.mark.parametrize(("op", "limited"), [("group_norm", True), ("batch_norm+add+relu", True), ("inference", False)])
def test_what_computes_statistics_has_a_limit(op: str, limited: bool) -> None:
    row = measure(Case(op, (4, 32, 5, 5), "NHWC"), ("torch",), 0.0)
    assert ((row.peers["torch"].limit or 0.0) > 0) == limited


def test_the_thread_count_is_the_case_s_and_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert measure(Case("rms_norm", (6, 24), "rows", threads=1), (), 0.0).case.threads == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.nightly  # inductor compiles for ten seconds, and jax may not be installed
@pytest.mark.parametrize("peer", ["compile", "jax"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor and jax use what Python is about to drop
def test_slow_peers_serve_training_batch_norm(peer: str, layout: str) -> None:
    if peer == "jax":
        pytest.importorskip("jax")
    from normkit.bench.results import cores

    row = measure(Case("batch_norm+add+relu", (4, 8, 5, 5), layout, threads=cores()), (peer,), 0.0)
    assert row.absent == {}
    assert row.peers[peer].ms > 0


def test_busy_processes_compute_meanwhile_and_end_with_it(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Seen(subprocess.Popen):  # type: ignore[type-arg]  # a test's recorder
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("normkit.bench.busy.subprocess.Popen", Seen)
    assert run("group_norm", "--busy", "2", "--cold", "--json", str(tmp_path / "f.json")) == 0
    rows = Document.from_json((tmp_path / "f.json").read_text()).rows
    assert {row.case.conditions for row in rows} == {"cold, 2 busy"}
    assert all(row.peers["torch"].mean is not None for row in rows)
    assert len(started) == 2 * len(rows)
    assert all(process.returncode is not None for process in started)
    printed = capsys.readouterr().out
    assert "group_norm, NHWC, float32, 1 thread, cold, 2 busy" in printed
    assert ", mean " in printed


def test_a_busy_process_ends_where_its_parent_was_killed() -> None:
    code = "import time; from normkit.bench.busy import busy\nwith busy(1): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        (child,) = children.read_text().split() if children.exists() else pytest.skip("no list of children here")
        parent.kill()
    end = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and state(child) != "Z":
        assert time.monotonic() < end, "it goes on computing"
        time.sleep(0.05)


def state(pid: str) -> str:
    """Of a process: R, S, Z (ended, not yet collected) ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--busy", "-1"), "--busy must be 0 to 256 processes, got -1"),
        (("--busy", "257"), "--busy must be 0 to 256 processes, got 257"),
        (("network", "--busy", "1"), "not for the network"),
        (("network", "--cold"), "not for the network"),
    ],
)
def test_conditions_that_cannot_be_had_are_refused(
    arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert text in capsys.readouterr().err
