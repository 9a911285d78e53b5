"""Every script of the gallery is right on normkit and wrong on torch, and the loader tells the two apart."""

from pathlib import Path

import pytest

from normkit.errors import UsageError
from normkit.studies import gallery

SCRIPTS = gallery.scripts()


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_normkit_is_right_where_torch_is_not(script: Path) -> None:
    row = gallery.row(script)
    assert row.normkit_right, row
    assert not row.torch_right, row


def _script(folder: Path, normkit: str, torch: str = "raise ValueError('no')", truth: str = "return 1.0") -> Path:
    path = folder / "01_made_up.py"
    path.write_text(
        f"TITLE, MEASURES, THREADS, TOLERANCE = 'a', 'b', ('1206', 'fvcore 152'), 0.1\n"
        f"def truth(): {truth}\ndef with_normkit(): {normkit}\ndef with_torch(): {torch}\n"
    )
    return path


@pytest.mark.parametrize(
    ("body", "answer", "right"),
    [
        ("return 1.09", 1.09, True),
        ("return 1.2", 1.2, False),
        ("return float('nan')", "nan", False),
        ("return float('inf')", "inf", False),
        ("raise TypeError", "TypeError", False),
    ],
    ids=["within", "outside", "NaN", "Inf", "error"],
)
def test_an_answer_is_judged_by_the_tolerance(tmp_path: Path, body: str, answer: float | str, right: bool) -> None:
    row = gallery.row(_script(tmp_path, body))
    assert (row.normkit, row.normkit_right, row.torch) == (answer, right, "ValueError")


def test_a_script_without_a_truth_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="must return a finite number"):
        gallery.row(_script(tmp_path, "return 1.0", truth="return float('nan')"))


def test_the_table_for_the_readme_names_threads_and_marks(tmp_path: Path) -> None:
    table = gallery.markdown([gallery.row(_script(tmp_path, "return 1.0"))])
    row = "| [a](examples/defects/01_made_up.py) | 1 | ✓ 1 | ✗ ValueError | pytorch#1206, fvcore 152 |"
    assert table.splitlines()[-1] == row


def test_a_script_runs_on_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    gallery.show(str(gallery.folder() / "05_empty_batch.py"))
    assert "torch    1  WRONG" in capsys.readouterr().out


def test_no_script_is_taken_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strange = tmp_path / "examples" / "defects"
    strange.mkdir(parents=True)
    _script(strange, "return 1.0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "__file__", str(tmp_path / "a" / "b" / "normkit" / "studies" / "gallery.py"))
    with pytest.raises(UsageError, match="run from a clone"):
        gallery.scripts()
