"""Ctrl-C ends a study in one line with everything finished kept; a killed command leaves no worker behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from normkit.studies.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
LIMIT = 120  # seconds until a wait is given up
MAIN = "import sys; from normkit.cli import main; sys.exit(main(sys.argv[1:]))"


@contextmanager
def studying(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A study of 160 short runs on two workers, in a process group of its own, as a terminal starts it."""
    argv = ["study", "learning_rate", "--quick", "--jobs", "2", "--data", "digits", "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", MAIN, *argv], start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert "runs to do" in process.stdout.readline()
            yield process
        finally:
            for member in members(process.pid):
                os.kill(member, signal.SIGKILL)


def members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def stored(out: Path) -> int:
    path = out / "results.json"
    return len(json.loads(path.read_text())["runs"]) if path.exists() else 0


@pytest.mark.parametrize("least", [0, 5], ids=["while workers start", "while they run"])
def test_ctrl_c_is_one_line_and_what_is_finished_is_kept(tmp_path: Path, least: int) -> None:
    with studying(tmp_path) as process:
        until(lambda: len(members(process.pid)) >= 3 and stored(tmp_path) >= least)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 130
        assert errors == "normkit: interrupted; finished runs are kept, the same command goes on from there\n"
        until(lambda: not members(process.pid))
    assert set(os.listdir(tmp_path)) <= {"results.json"}
    assert stored(tmp_path) >= least


def test_workers_of_a_killed_command_end(tmp_path: Path) -> None:
    with studying(tmp_path) as process:
        until(lambda: stored(tmp_path) >= 1)
        process.kill()
        until(lambda: not members(process.pid))


def test_runs_that_nobody_took_yet_are_stored_on_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers had finished all runs when the interrupt came after the first was stored."""
    from concurrent.futures import ThreadPoolExecutor, wait

    from normkit.studies import runner
    from normkit.studies.study import Run

    class Pool(ThreadPoolExecutor):
        _processes = None

        def __init__(self, workers: int, **_: object) -> None:
            super().__init__(workers)

    def all_done(futures: list) -> list:
        wait(futures)
        return futures

    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    def fail_on_three(name: str, params: dict) -> Run:
        if params["seed"] == 3:
            raise RuntimeError("this one failed")
        return Run(params, {}, 0.1)

    monkeypatch.setattr(runner, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(runner, "as_completed", all_done)
    monkeypatch.setattr(runner, "timed", fail_on_three)
    store = Store(tmp_path, "v")
    study = type("Named", (), {"name": "study"})
    with pytest.raises(KeyboardInterrupt):
        runner._in_pool([(study, {"seed": seed}) for seed in range(6)], store, interrupt, 2)  # type: ignore[list-item]
    kept = [seed for seed in range(6) if Store(tmp_path, "v").find("study", {"seed": seed})]
    assert kept == [0, 1, 2, 4, 5]
