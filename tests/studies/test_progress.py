"""Progress: bars with the time left on a terminal; lines without control characters anywhere else."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from normkit.studies import STUDIES, progress
from normkit.studies.listing import duration
from normkit.studies.progress import Task, shown
from normkit.studies.verdict import Part, Verdict, combine

from .planted import planted


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (40, "40 s"), (89.4, "89 s"), (150, "2 min"), (5340, "89 min"), (5500, "1 h 32 min")],
)
def test_a_time_is_said_as_one_says_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_lines_tell_the_beginning_each_end_and_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {
        "a": Task("First", 2, 10.0, lambda: "supported"),
        "b": Task("Second", 3, 20.0, lambda: "undecided", done=1),
        "c": Task("Third", 1, 5.0, lambda: "found", done=1),
    }
    with shown(tasks, jobs=2) as advance:
        for key in "aabb":
            clock.now += 20.0  # twice the estimate of an `a` with two workers
            advance(key)
    assert capsys.readouterr().out.splitlines() == [
        "4 runs to do, about 30 s",  # 60 CPU seconds by two workers
        "Third: found; about 30 s left",
        "First: supported; about 80 s left",  # 40 s for a third of the work
        "Second: undecided",
    ]


def test_nothing_to_do_is_no_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    with shown({"a": Task("First", 2, 10.0, lambda: "supported", done=2)}, jobs=2):
        pass
    assert capsys.readouterr().out == "First: supported\n"


RUN = """
import sys
from dataclasses import replace
from normkit import cli
from normkit.studies import STUDIES
chain = STUDIES["step_sign"]
quick = lambda preset: [params | {"draws": 1} for params in chain.plan(preset)[:6]]
STUDIES["step_sign"] = replace(chain, plan=quick)
sys.exit(cli.main(["study", "step_sign", "--quick", "--jobs", "1", "--data", "digits", "--out", sys.argv[1]]))
"""


def _on_terminal(folder: Path, **environment: str) -> str:
    master, slave = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "TERM", "CI")}
    command, env = [sys.executable, "-c", RUN, str(folder)], {**kept, "TERM": "xterm-256color", **environment}
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        pieces = []
        while True:
            try:
                pieces.append(os.read(master, 65536))
            except OSError:  # the other end is closed
                break
        assert process.wait(120) == 0
    os.close(master)
    return b"".join(pieces).decode()


COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-7]|38;|9[0-7])[\d;]*m")


def test_a_terminal_gets_bars_colours_and_the_time_left(tmp_path: Path) -> None:
    text = _on_terminal(tmp_path)
    assert COLOUR.search(text)
    assert "6/6" in text
    assert re.search(r"about \d+ s left", text)


def test_no_color_is_obeyed(tmp_path: Path) -> None:
    text = _on_terminal(tmp_path, NO_COLOR="1")
    assert "6/6" in text
    assert not COLOUR.search(text)


def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    text = _on_terminal(tmp_path, TERM="dumb")
    assert "\x1b" not in text
    assert "6 runs to do" in text


def test_a_pipe_gets_lines_without_control_characters(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert re.fullmatch(r"6 runs to do, about \d+ s", lines[0])
    assert re.fullmatch(r"A step that goes the wrong way: [a-z ]+, 6 runs, \d+ s of CPU time", lines[1])


def _part(claim: str, word: str, p: float | None) -> Part:
    return Part(claim, word, 1.0, 0.5, 1.5, "above", 0.0, "points", "why", p)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "claim"),
    [
        ([("a", "supported", 0.01), ("b", "supported", 0.04), ("c", "supported", None)], "b"),
        ([("a", "supported", 0.01), ("b", "undecided", 0.3), ("c", "undecided", 0.2)], "c"),
        ([("a", "undecided", 0.3), ("b", "not supported", 0.03), ("c", "not supported", 0.001)], "c"),
        ([("a", "supported", None)], "a"),
    ],
    ids=["the weakest that holds", "the nearest of the open", "the surest of the contradicted", "exact"],
)
def test_a_verdict_hangs_on_one_part(parts: list, claim: str) -> None:
    assert combine([_part(*part) for part in parts]).deciding.claim == claim


@pytest.mark.parametrize("word", ["supported", "not supported", "undecided"])
@pytest.mark.parametrize("name", STUDIES)
def test_the_last_table_names_the_part_and_the_number_that_decided(
    name: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = STUDIES[name].judge(planted(name, word))
    study = {"title": STUDIES[name].title, "verdict": verdict.to_json()}
    progress.show({"right": [], "fast": [], "studies": [study]}, "report.html")
    flat = " ".join(capsys.readouterr().out.split())
    assert word in flat
    assert verdict.deciding.word == word
    lead, _, number = progress.decided(verdict.deciding).rpartition("; ")
    assert number == verdict.deciding.reason
    letters = re.sub(r"\s", "", lead)
    # the other columns stand between the words of a wrapped cell: its letters come in their order
    assert re.search(".*?".join(map(re.escape, letters)), flat)


def test_verdicts_of_earlier_files_have_no_p() -> None:
    data = combine([_part("a", "supported", 0.01)]).to_json()
    for part in data["parts"]:
        del part["p"]
    assert Verdict.from_json(data).deciding.claim == "a"
