"""The command line answers what cannot be done in one line and exit code 2, without a traceback."""

import errno
import json
import os
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
    message = _refused(capsys, "study", "step_sing", "--out", str(tmp_path))
    assert "step_sing" in message
    assert all(name in message for name in STUDIES)


def test_an_unwritable_folder_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "file/out" in _refused(capsys, "study", "--quick", "--out", str(tmp_path / "file" / "out"))


def test_a_broken_results_file_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    assert "results.json" in _refused(capsys, "study", "--quick", "--out", str(tmp_path))


NUMBERS = {
    ("--seeds", "0"): "--seeds must be at least 1, got 0",
    ("--seeds", "-3"): "--seeds must be at least 1, got -3",
    ("--seeds", "1001"): "--seeds must be at most 1000, got 1001",
    ("--first-seed", "-1"): "--first-seed must be at least 0, got -1",
    ("--first-seed", "1" + 30 * "0"): "--first-seed must be at most 1000000000, got 1000",
    ("--jobs", "0"): "--jobs must be at least 1, got 0",
    ("--jobs", "257"): "--jobs must be at most 256, got 257",
}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(("option", "text"), NUMBERS.items(), ids=map(" ".join, NUMBERS))
def test_numbers_out_of_range_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: tuple[str, str], text: str, listed: bool
) -> None:
    assert text in _refused(capsys, "study", *option, "--out", str(tmp_path / "out"), *(["--list"] if listed else []))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--seeds", "--first-seed", "--jobs"])
@pytest.mark.parametrize("value", ["five", "1.5", "", "nan"])
def test_what_is_no_number_is_a_wrong_argument(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study", option, value])
    assert stopped.value.code == 2
    assert f"argument {option}: invalid int value: {value!r}" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["studies"], ["study", "--listen"], ["info", "more"], ["--versions"]])
def test_unknown_commands_and_options_are_wrong_arguments(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: normkit")


def test_help_names_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["study", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in STUDIES)
    assert max(map(len, shown.splitlines())) <= 80


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from normkit.info import version

    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"normkit {version()}\n"


def test_the_list_has_every_claim_its_runs_and_its_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "72")
    assert cli.main(["study", "--list", "--jobs", "2"]) == 0
    shown = capsys.readouterr().out
    flat = " ".join(shown.split())
    for study in STUDIES.values():
        assert f"{study.name}: {study.title} {study.claim} quick: " in flat
    assert "quick: 200 runs, about 49 s; full: 1140 runs, about 22 min" in flat  # small_batch
    assert "with 2 workers" in flat
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_some_names_counts_with_the_seeds_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "--list", "small_batch", "--seeds", "1", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "quick: 20 runs" in shown
    assert "step_sign" not in shown
    assert "no study is called 'x'" in _refused(capsys, "study", "--list", "x")


def test_the_list_goes_into_a_pipe_that_closes(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [sys.executable, "-c", "import sys, normkit.cli; sys.exit(normkit.cli.main(['study', '--list']))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(120) == 128 + 13
        assert process.stderr is not None
        assert process.stderr.read() == b""


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
    assert cli.main(["study", "step_sign", "--quick", "--data", "digits", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("the same command goes on from there\n")


def test_a_study_writes_both_files_and_the_second_start_runs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = find("step_sign")
    monkeypatch.setitem(STUDIES, "step_sign", replace(chain, plan=lambda preset: chain.plan(preset)[:2]))
    monkeypatch.setattr(conduct, "cores", lambda: 1)
    argv = ["study", "step_sign", "--quick", "--data", "digits", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    assert str(tmp_path / "report.html") in capsys.readouterr().out.replace("\n", "")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["study"] for run in results["runs"]] == ["step_sign"] * 2
    assert results["report"]["studies"][0]["verdict"]["parts"]
    assert "step_sign" in (tmp_path / "report.html").read_text()

    def never(*_: object) -> None:
        raise AssertionError("a finished run was started again")

    monkeypatch.setattr(runner, "timed", never)
    assert cli.main(argv) == 0


def test_an_old_name_works_and_says_what_it_is_called_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "--list", "linear_chain", "--jobs", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("step_sign: ")
    assert captured.err == "normkit: linear_chain is now step_sign\n"


def test_stability_takes_a_fresh_block_and_states_what_holds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .planted import planted

    chain = find("step_sign")
    held = {run.params["seed"]: run.result for run in planted("step_sign", "supported", 6)}

    def run(params: dict) -> dict:
        return held[params["seed"] % 10_000]

    monkeypatch.setitem(STUDIES, "step_sign", replace(chain, run=run))
    monkeypatch.setattr(conduct, "FRESH_SEEDS", 6)
    argv = ["study", "step_sign", "--quick", "--seeds", "6", "--jobs", "1", "--data", "digits", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    assert "was not measured (--stability)" in " ".join(capsys.readouterr().out.split())
    (section,) = json.loads((tmp_path / "results.json").read_text())["report"]["studies"]
    assert (section["verdict"]["word"], section["stability"]) == ("supported", None)
    assert cli.main([*argv, "--stability"]) == 0
    assert "of 1,000 resamples" in " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "results.json").read_text())
    (section,) = results["report"]["studies"]
    assert sorted({run["params"]["seed"] for run in results["runs"]}) == [*range(6), *range(10_000, 10_006)]
    assert section["verdict"]["word"] == section["stability"]["word"] == "supported"
    assert section["stability"]["share"] == 1.0
    assert section["seeds"] == [0, 1, 2, 3, 4, 5]
    assert len(section["rule_sha256"]) == 64


def test_fresh_seeds_are_other_runs_of_the_same_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = find("step_sign")
    monkeypatch.setitem(STUDIES, "step_sign", replace(chain, plan=lambda preset: chain.plan(preset)[:2]))
    argv = ["study", "step_sign", "step_sign", "--quick", "--jobs", "1", "--data", "digits", "--out"]
    for first in ("0", "1000", "0"):
        assert cli.main([*argv, str(tmp_path), "--first-seed", first]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert sorted(run["params"]["seed"] for run in results["runs"]) == [0, 1, 1000, 1001]
    assert results["report"]["about"]["preset"] == "quick, 10 seeds from 0 on"
    assert len(results["report"]["studies"]) == 1  # named twice, done once


def test_the_page_is_written_whole_or_not_at_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = find("step_sign")
    monkeypatch.setitem(STUDIES, "step_sign", replace(chain, plan=lambda preset: chain.plan(preset)[:1]))
    argv = ["study", "step_sign", "--quick", "--jobs", "1", "--data", "digits", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    before, rename = (tmp_path / "report.html").read_text(), os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "report.html":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert cli.main(argv) == 2
    assert "report.html: No space left on device; what it held before is kept" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == before
    assert sorted(os.listdir(tmp_path)) == ["report.html", "results.json"]


def test_a_page_that_cannot_be_written_is_refused_before_the_first_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "report.html").symlink_to("elsewhere")
    message = _refused(capsys, "study", "--quick", "--data", "digits", "--out", str(tmp_path))
    assert "report.html is a symbolic link" in message


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
