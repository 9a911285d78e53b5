"""The command line answers what cannot be done in one line and exit code 2, without a traceback."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from normkit import cli
from normkit.studies import STUDIES, conduct, find, runner

ONE_LINE = 1


def _refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("normkit: ")
    assert captured.err.count("\n") == ONE_LINE
    return captured.err


def test_a_bad_name_lists_the_good_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = _refused(capsys, "study", "linear_chian", "--out", str(tmp_path))
    assert "linear_chian" in message
    assert all(name in message for name in STUDIES)


def test_an_unwritable_folder_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file/out" in _refused(capsys, "study", "--quick", "--out", str(tmp_path / "file" / "out"))


def test_a_broken_results_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    assert "results.json" in _refused(capsys, "study", "--quick", "--out", str(tmp_path))


@pytest.mark.parametrize("seeds", ["0", "-3"])
def test_too_few_seeds_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, seeds: str) -> None:
    assert "--seeds" in _refused(capsys, "study", "--seeds", seeds, "--out", str(tmp_path))


def test_unknown_data_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "'imagenet'" in _refused(capsys, "study", "--data", "imagenet", "--out", str(tmp_path))


def test_a_missing_extra_names_the_command_that_brings_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conduct, "missing", lambda extra: ["matplotlib", "rich"])
    message = _refused(capsys, "study", "--out", str(tmp_path))
    assert "matplotlib, rich" in message
    assert "pip install 'normkit[studies]'" in message


def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(conduct, "run_studies", interrupt)
    assert cli.main(["study", "linear_chain", "--quick", "--data", "digits", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("the same command goes on from there\n")


def test_a_study_writes_both_files_and_the_second_start_runs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = find("linear_chain")
    monkeypatch.setitem(STUDIES, "linear_chain", replace(chain, plan=lambda preset: chain.plan(preset)[:2]))
    monkeypatch.setattr(conduct, "cores", lambda: 1)
    argv = ["study", "linear_chain", "--quick", "--data", "digits", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out.replace("\n", "")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["study"] for run in results["runs"]] == ["linear_chain"] * 2
    assert results["report"]["studies"][0]["verdict"]["parts"]
    assert "linear_chain" in (tmp_path / "report.html").read_text()

    def never(*_: object) -> None:
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr(runner, "timed", never)
    assert cli.main(argv) == 0


def test_info_says_which_paths_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    facts = capsys.readouterr().out
    assert all(label in facts for label in ("normkit", "torch", "threads", "native path", "composed path", "aten path"))


def test_importing_the_command_line_loads_no_plots() -> None:
    import subprocess
    import sys

    heavy = (
        "import sys, normkit.cli; print([m for m in ('matplotlib', 'scipy', 'sklearn', 'rich') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout.strip() == "[]"
