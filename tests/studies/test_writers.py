"""Several processes in one folder, and processes that are killed: no finished run is lost, nothing is left behind."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from normkit.studies.store import Store

from . import writer

WRITER = Path(writer.__file__)
LIMIT = 120  # seconds until a process that hangs is given up


def _start(folder: Path, study: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(folder), study, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _codes(processes: list[subprocess.Popen[str]]) -> list[int]:
    """The exit codes, once all have ended."""
    for process in processes:
        process.communicate(timeout=LIMIT)
    return [process.returncode for process in processes]


def _runs(folder: Path) -> dict[tuple[str, int], object]:
    runs = json.loads((folder / "results.json").read_text())["runs"]
    found = {(run["study"], run["params"]["seed"]): run["result"] for run in runs}
    assert len(found) == len(runs)
    return found


def test_eight_writers_in_one_folder_lose_nothing(tmp_path: Path) -> None:
    writers = [_start(tmp_path, f"study {number}", 25) for number in range(8)]
    assert _codes(writers) == [0] * 8
    wanted = {(f"study {n}", seed): writer.result(seed) for n in range(8) for seed in range(25)}
    assert _runs(tmp_path) == wanted
    assert os.listdir(tmp_path) == ["results.json"]


def test_two_writers_of_the_same_runs_agree(tmp_path: Path) -> None:
    writers = [_start(tmp_path, "study", 40) for _ in range(2)]
    assert _codes(writers) == [0, 0]
    assert _runs(tmp_path) == {("study", seed): writer.result(seed) for seed in range(40)}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_writer_killed_at_any_time_resumes_to_equal_results(tmp_path: Path) -> None:
    draw, before, kills = random.Random(0), 0, 0
    for _ in range(50):
        with _start(tmp_path, "study", 400) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            try:
                process.wait(draw.uniform(0, 0.03))
            except subprocess.TimeoutExpired:
                process.kill()
            kills += process.wait(LIMIT) == -signal.SIGKILL
        now = len(_runs(tmp_path)) if (tmp_path / "results.json").exists() else 0
        assert now >= before
        before = now
    assert kills == 50
    assert 0 < before < 400
    assert _codes([_start(tmp_path, "study", 400)]) == [0]
    assert _runs(tmp_path) == {("study", seed): writer.result(seed) for seed in range(400)}
    assert os.listdir(tmp_path) == ["results.json"]


def test_what_others_wrote_meanwhile_is_kept_with_every_section(tmp_path: Path) -> None:
    first, second = Store(tmp_path, "v1"), Store(tmp_path, "v1")
    first.write(report={"by": "first"}, mine=1)
    second.write(report={"by": "second"})
    assert json.loads((tmp_path / "results.json").read_text())["mine"] == 1
    assert first.document["report"] == {"by": "first"}
    first.write()
    assert first.document["report"] == {"by": "second"}
