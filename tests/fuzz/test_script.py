"""A finding's script needs nothing of the fuzzer and shows the finding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tools.fuzz.case import Array, Case
from tools.fuzz.finding import Finding
from tools.fuzz.fit import fit
from tools.fuzz.generate import draw
from tools.fuzz.script import script

FINDING = Finding("value", "y", "y[0, 1] is 1.0, expected 2.0: off by 1, allowed 0.1", 5, ("y", (0, 1)), 2.0)


def run(text: str, folder: Path) -> str:
    path = folder / "finding.py"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, str(path)], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_prints_both_libraries_and_the_truth(tmp_path: Path) -> None:
    case = fit(Case(shape=(3, 4), activation="nn.Softplus()").with_tensor("weight", Array(trick="negated")))
    text = script(7, 3, case, FINDING)
    assert "tools" not in text
    assert "seed 3, case 7" in text
    lines = run(text, tmp_path).splitlines()
    assert lines[0].startswith("torch: y [0, 1] is ")
    assert lines[1].startswith("normkit: y [0, 1] is ")
    assert lines[2] == "float64: 2.0"


@pytest.mark.parametrize("expected", [None, float("nan"), float("inf")])
def test_numbers_that_are_none_are_printed(expected: float | None, tmp_path: Path) -> None:
    text = script(0, 0, Case(), Finding("crash", "SIGSEGV", "no trace", 5, None, expected))
    assert ("float64" in run(text, tmp_path)) == (expected is not None)


def test_every_case_has_a_script_that_compiles() -> None:
    for number in range(300):
        compile(script(number, 1, draw(1, number), FINDING), "script", "exec")
