"""The command: writes the page, or says in one line why not."""

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from normkit import cli
from normkit.learn.own import read
from normkit.studies import demo, progress


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(["learn", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("normkit: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_it_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "learn.html"
    assert cli.main(["learn", "--out", str(path), "--lang", "zh"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text(encoding="utf-8").startswith('<!doctype html>\n<html lang="zh">')


def test_the_demo_ends_with_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "demo", lambda out: SimpleNamespace(results={}, html=out / "report.html"))
    monkeypatch.setattr(progress, "show", lambda *_: None)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"to play with: {tmp_path / 'learn.html'}"
    assert (tmp_path / "learn.html").exists()


def test_it_needs_nothing_but_torch(tmp_path: Path) -> None:
    code = (
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"  # torch warns without numpy
        "for name in ('numpy', 'scipy', 'sklearn', 'mlxtend', 'jinja2', 'rich'): sys.modules[name] = None\n"
        "from normkit import cli\n"
        "sys.exit(cli.main(['learn', '--out', sys.argv[1]]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.html")], check=True, timeout=120)
    assert (tmp_path / "x.html").stat().st_size > 200_000


def test_an_unknown_language_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--lang must be one of en, zh, got 'fr'" in refused(
        capsys, "--lang", "fr", "--out", str(tmp_path / "x.html")
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["folder", "link", "under a file"])
def test_a_file_that_cannot_be_written_is_named(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    path = tmp_path / {"under a file": "kept/learn.html"}.get(place, place)
    assert str(path) in refused(capsys, "--out", str(path))
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_busy_port_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot serve on 127.0.0.1:{port}" in refused(capsys, "--serve", "--port", str(port))


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--port must be from 0 to 65535, got {port}" in refused(capsys, "--serve", "--port", port)


GOOD = np.arange(6 * 20 * 20, dtype=np.float32).reshape(6, 20, 20)
HOSTILE = {
    "too few": (GOOD[:5], "expected at least 6 images"),
    "too small": (GOOD[:, :13], "of 14x14 or more"),
    "a vector": (GOOD.ravel(), "got (2400,)"),
    "nan": (GOOD * np.nan, "must hold finite numbers"),
    "constant": (GOOD * 0, "not all the same"),
    "objects": (np.array([{}] * 6, dtype=object), "got |O"),
    "complex": (GOOD * 1j, "numbers of at most 8 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_images_that_do_not_fit_are_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, complaint = HOSTILE[case]
    np.savez(tmp_path / "own.npz", images=images)
    assert complaint in refused(capsys, "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "x.html"))
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00"], ids=["empty", "broken", "npy"]
)
def test_a_file_that_is_no_archive_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.npz").write_bytes(content)
    assert "own.npz" in refused(capsys, "--data", str(tmp_path / "own.npz"))


def test_an_archive_of_something_else_and_no_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "own.npz", other=GOOD)
    assert "images" in refused(capsys, "--data", str(tmp_path / "own.npz"))
    assert "none.npz" in refused(capsys, "--data", str(tmp_path / "none.npz"))


@pytest.mark.parametrize("channels", [0, 3], ids=["grey", "colour"])
def test_own_images_become_six_small_ones(channels: int, tmp_path: Path) -> None:
    images = np.stack([GOOD] * channels, axis=-1) if channels else GOOD
    np.savez(tmp_path / "own.npz", images=images.astype(np.uint16))
    made = read(tmp_path / "own.npz").images
    assert made is not None
    assert made.shape == (6, 14, 14)
    assert made.amin() == 0
    assert made.amax() == 1
    assert bool((made.flatten().diff() != 0).all())
