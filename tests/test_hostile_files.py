"""Whatever lies where a command reads: one clear line, exit code 2, the file as it was, in bounded time and memory."""

import os
import random
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from normkit import cli
from normkit.errors import UsageError
from normkit.studies import STUDIES, conduct, data
from normkit.studies.store import Store
from normkit.studies.study import Run

from . import hostile

MEMORY = 64 << 20  # bytes: two of the corpus are honest up to some MB, none of the others needs one
HANG = 60  # seconds until a command counts as hanging: none takes one


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What a command imports counts against no file's memory."""
    import normkit.bench.run  # noqa: F401

    data.load("digits")


@contextmanager
def bounded() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise AssertionError(f"nothing came back for {HANG} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANG)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def seen(path: Path) -> tuple[object, ...]:
    """What can be told of whatever lies at the path."""
    status = path.lstat()
    small = path.is_file() and status.st_size < 1 << 30
    return status.st_mode, status.st_size, status.st_ino, path.read_bytes() if small else None


def refused(capsys: pytest.CaptureFixture[str], path: Path, *argv: str) -> str:
    """The one line with which the command refuses what lies at the path, and leaves it."""
    before = seen(path)
    with bounded():
        assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("normkit: ")
    assert captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()
    assert len(captured.err) < 1000
    assert seen(path) == before
    assert not hostile.Opened.done
    return captured.err


@pytest.mark.parametrize("what", hostile.RESULTS)
def test_no_results_file_is_too_odd(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    hostile.RESULTS[what](path)
    line = refused(capsys, path, "study", "step_sign", "--quick", "--data", "digits", "--out", str(tmp_path))
    assert "results.json" in line
    assert "--out" in line
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("what", hostile.FIGURES)
def test_no_file_of_figures_is_too_odd(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    hostile.FIGURES[what](path)
    line = refused(capsys, path, "bench", "layer_norm", "--json", str(path))
    assert any(way in line for way in ("measure into a new file", "choose another --json file", "name another place"))
    assert os.listdir(tmp_path) == ["figures.json"]


@pytest.mark.parametrize("what", hostile.IMAGES)
def test_no_file_of_images_is_too_odd(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "mine.npz", tmp_path / "out"
    hostile.IMAGES[what](path)
    line = refused(capsys, path, "study", "step_sign", "--quick", "--data", str(path), "--out", str(out))
    assert "mine.npz" in line
    assert not out.exists()


def test_what_is_absent_or_cannot_be_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("absent.npz", "a" * 300, "", "file/inside.npz", "\udcff.npz"):
        (tmp_path / "file").touch()
        place = str(tmp_path / name) if name else ""
        assert cli.main(["study", "--quick", "--data", place, "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1


def test_any_changed_byte_is_read_or_refused_in_a_line(tmp_path: Path) -> None:
    good, draw = hostile.archive(), random.Random(0)
    read = 0
    for number in range(400):
        content = bytearray(good)
        for _ in range(draw.choice((1, 1, 2, 8))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content[: draw.choice((len(content), draw.randrange(len(content))))])
        complaint = None
        try:
            data.load(str(path))
        except UsageError as error:
            complaint = str(error)
        assert complaint is None or (path.name in complaint and "\n" not in complaint)
        read += complaint is None
        path.unlink()
    assert read < 200


@pytest.mark.parametrize("result", [{}, {"chain": 3, "net": 4}, {"chain": [[]], "net": [[]]}, {"chain": "x" * 9}])
def test_a_finished_run_that_holds_something_else_is_the_file_s_fault(
    result: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, preset = STUDIES["step_sign"], conduct._preset(True, None, "digits", 0)
    store = Store(tmp_path, conduct.made_with(preset), conduct.rules())
    for params in chain.plan(preset):
        store.add("step_sign", Run(params, result, 0.1))
    assert cli.main(["study", "step_sign", "--quick", "--data", "digits", "--out", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert "its runs of step_sign hold something else than its results; move it away" in line
    assert line.count("\n") == 1


def test_a_bug_of_ours_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over runs that this command made, the same exception is no fault of a file."""
    from dataclasses import replace

    chain = STUDIES["step_sign"]

    def broken(runs: object) -> float:
        raise KeyError("bug")

    parts = (replace(chain.parts[0], of=broken),)
    monkeypatch.setitem(STUDIES, "step_sign", replace(chain, plan=lambda p: chain.plan(p)[:1], parts=parts))
    with pytest.raises(KeyError, match="bug"):
        cli.main(["study", "step_sign", "--quick", "--jobs", "1", "--data", "digits", "--out", str(tmp_path)])


def test_honest_files_of_other_kinds_are_read(tmp_path: Path) -> None:
    """Compressed, in the other byte order and by columns: the numbers are those of the plain file."""
    import numpy as np
    import torch

    plain = {"images": hostile.WIDE, "labels": hostile.EACH}
    np.savez(tmp_path / "plain.npz", **plain)
    np.savez_compressed(tmp_path / "packed.npz", **plain)
    other = {"images": np.asfortranarray(hostile.WIDE.astype(">f4")), "labels": hostile.EACH.astype(">i2")}
    np.savez(tmp_path / "other.npz", **other)
    loaded = [data.load(str(tmp_path / f"{name}.npz")) for name in ("plain", "packed", "other")]
    for images in loaded[1:]:
        assert torch.equal(images.train_x, loaded[0].train_x)
        assert torch.equal(images.test_y, loaded[0].test_y)


def test_a_run_over_changed_data_is_not_found_again(tmp_path: Path) -> None:
    (tmp_path / "mine.npz").write_bytes(hostile.archive())
    preset = conduct._preset(True, None, str(tmp_path / "mine.npz"), 0)
    Store(tmp_path / "out", conduct.made_with(preset)).add("study", Run({"seed": 0}, {}, 0.1))
    assert Store(tmp_path / "out", conduct.made_with(preset)).find("study", {"seed": 0}) is not None
    (tmp_path / "mine.npz").write_bytes(hostile.archive(how=0))
    assert Store(tmp_path / "out", conduct.made_with(preset)).find("study", {"seed": 0}) is None
