"""results.json: what is finished is found again, what is not ours is refused and left alone."""

import json
import math
from pathlib import Path

import pytest

from normkit.errors import UsageError
from normkit.studies.store import FORMAT, Store
from normkit.studies.study import Run

RUN = Run({"seed": 1, "rate": 0.1}, {"error": 0.25, "curve": [1.0, 2.0]}, 0.5)


def test_a_second_start_finds_the_finished_run(tmp_path: Path) -> None:
    Store(tmp_path, "v1").add("study", RUN)
    again = Store(tmp_path, "v1")
    assert again.find("study", {"rate": 0.1, "seed": 1}) == RUN
    assert again.find("study", {"rate": 0.1, "seed": 2}) is None
    assert again.find("other", RUN.params) is None


def test_runs_of_other_versions_are_not_taken_for_ours_but_kept(tmp_path: Path) -> None:
    Store(tmp_path, "v1").add("study", RUN)
    newer = Store(tmp_path, "v2")
    assert newer.find("study", RUN.params) is None
    newer.add("study", RUN)
    assert len(Store(tmp_path, "v1").document["runs"]) == 2


def test_runs_of_another_rule_are_not_taken_for_ours_but_kept(tmp_path: Path) -> None:
    Store(tmp_path, "v1", {"study": "a" * 64}).add("study", RUN)
    changed = Store(tmp_path, "v1", {"study": "b" * 64})
    assert changed.find("study", RUN.params) is None
    assert not changed.resumed("study")
    assert Store(tmp_path, "v1", {"study": "a" * 64, "other": "c" * 64}).find("study", RUN.params) == RUN
    assert len(changed.document["runs"]) == 1


def test_what_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    Store(tmp_path, "v1").add("study", Run({"seed": 0}, {"loss": math.nan, "curve": [math.inf, 1.0]}, 0.1))
    found = Store(tmp_path, "v1").find("study", {"seed": 0})
    assert found is not None
    assert found.result == {"loss": None, "curve": [None, 1.0]}


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, "v1")
    store.add("study", RUN)
    before = store.path.read_text()

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(UsageError, match="disk full"):
        store.add("study", Run({"seed": 2}, {}, 0.1))
    assert store.path.read_text() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{half",
        "[]",
        "null",
        '{"runs": []}',
        json.dumps({"format": "normkit-results/0", "runs": []}),
        json.dumps({"format": FORMAT, "runs": {}}),
        json.dumps({"format": FORMAT, "runs": [{"study": "s"}]}),
        json.dumps({"format": FORMAT, "runs": [None]}),
        '{"format": "' + FORMAT + '", "runs": [], "x": "\udcff"}',
    ],
    ids=["empty", "half", "list", "null", "no format", "old", "runs no list", "run no fields", "run null", "not UTF-8"],
)
def test_a_broken_file_is_refused_in_one_line_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    raw = text.encode("utf-8", "surrogateescape")
    path.write_bytes(raw)
    with pytest.raises(UsageError, match="cannot resume from") as error:
        Store(tmp_path, "v1")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == raw


def test_an_output_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to the output folder"):
        Store(tmp_path / "file" / "out", "v1")
