"""The gallery of defects: every script still fails on torch and passes on normkit, and says where it was reported."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from normkit.studies.gallery import row, scripts

SCRIPTS = scripts()
gallery = pytest.mark.parametrize("script", SCRIPTS, ids=[s.stem for s in SCRIPTS])


@gallery
def test_torch_is_wrong_and_normkit_is_right(script: Path) -> None:
    """If torch's side fails here, PyTorch has repaired it: move the row to what was repaired."""
    result = row(script)
    assert result.normkit_right, f"normkit {result.normkit}, float64 {result.truth}"
    assert not result.torch_right, f"torch {result.torch}, float64 {result.truth}"


@gallery
def test_the_script_names_its_threads_and_its_file_counts_on(script: Path) -> None:
    result = row(script)
    assert re.fullmatch(r"\d\d_[a-z0-9_]+\.py", script.name)
    assert all(re.fullmatch(r"(\S+ )?\d+", thread) for thread in result.threads)
    assert result.title
    assert result.measures


def test_the_numbers_run_without_gap() -> None:
    assert [int(s.name[:2]) for s in SCRIPTS] == list(range(1, len(SCRIPTS) + 1))


def test_a_script_runs_on_its_own_and_prints_both_answers(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPTS[4]), run_name="__main__")
    printed = capsys.readouterr().out
    assert "normkit  0  right" in printed
    assert "torch    1  WRONG" in printed
