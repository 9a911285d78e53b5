"""Files are written whole or not at all, one writer at a time, and only in the place of a plain file."""

import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from normkit import _files
from normkit.errors import UsageError

OLD, NEW = "what stood there before\n", "what comes in its place, and is longer\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f[1]*.json"
    path.write_text(OLD)
    return path


def whole(path: Path, *texts: str) -> None:
    """The file holds one of the texts, and nothing else lies in its folder."""
    assert path.read_text() in texts
    assert os.listdir(path.parent) == [path.name]


def test_the_new_text_takes_the_place_of_the_old_and_its_permissions(path: Path) -> None:
    path.chmod(0o640)
    _files.update(path, lambda: NEW)
    whole(path, NEW)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_new_file_gets_the_permissions_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _files.update(tmp_path / "new", lambda: NEW)
    finally:
        os.umask(before)
    whole(tmp_path / "new", NEW)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_both_the_file_and_its_folder_reach_the_disk_and_the_file_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    _files.update(path, lambda: NEW)
    assert steps == ["file", "rename", "folder"]


@pytest.mark.parametrize("room", range(len(NEW)))
def test_a_disk_that_is_full_at_any_byte_leaves_the_old_file_alone(
    path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.write, room

    def short(descriptor: int, data: memoryview) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[:left])
        left -= written
        return written

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(UsageError, match=r"cannot write .*: No space left on device; what it held before is kept"):
        _files.update(path, lambda: NEW)
    whole(path, OLD)


def test_a_real_limit_of_the_system_at_any_byte_leaves_the_old_file_alone(path: Path) -> None:
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for room in range(len(NEW)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            try:
                with pytest.raises(UsageError, match="File too large; what it held before is kept"):
                    _files.update(path, lambda: NEW)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            whole(path, OLD)
    finally:
        signal.signal(signal.SIGXFSZ, handler)


def _raised_at(line: int, path: Path) -> bool:
    """Update with a KeyboardInterrupt at the line event of this number; False if there are fewer."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Callable | None:
        nonlocal seen
        if frame.f_code.co_filename != _files.__file__:
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        _files.update(path, lambda: NEW)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


# a file that an interrupt keeps from being closed is closed as it is dropped, with a ResourceWarning
@pytest.mark.filterwarnings("ignore:.*unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_line_leaves_one_whole_file_and_the_next_writer_goes_on(path: Path) -> None:
    line = 0
    while _raised_at(line := line + 1, path):
        assert path.read_text() in (OLD, NEW)
        _files.update(path, lambda: OLD)
        whole(path, OLD)
    assert line > 30  # it did reach the writing


def test_an_exception_in_what_makes_the_text_writes_nothing(path: Path) -> None:
    def fail() -> str:
        raise MemoryError

    with pytest.raises(MemoryError):
        _files.update(path, fail)
    whole(path, OLD)


def _link(path: Path) -> None:
    (path.parent / "elsewhere").write_text(OLD)
    path.symlink_to("elsewhere")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


ODD: dict[str, Callable[[Path], object]] = {
    "a symbolic link": _link,
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a socket": _socket,
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_plain_file_is_refused_in_words_and_left(tmp_path: Path, what: str) -> None:
    path = tmp_path / "f"
    ODD[what](path)
    before = sorted(os.listdir(tmp_path)), path.lstat().st_mode
    with pytest.raises(UsageError, match=f"f is {what}, expected a plain file or none: move it away or name another"):
        _files.update(path, lambda: NEW)
    with pytest.raises(OSError, match=what):
        _files.prepare(path)
    assert (sorted(os.listdir(tmp_path)), path.lstat().st_mode) == before
    assert what != "a symbolic link" or path.read_text() == OLD


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "f").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="a symbolic link"):
        _files.update(tmp_path / "f", lambda: NEW)
    assert os.listdir(tmp_path) == ["f"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files.secrets, "token_hex", lambda _: "guessed")
    victim = tmp_path / "victim"
    victim.write_text(OLD)
    trap = path.with_name(f".{path.name}.guessed.partial")

    def set_trap() -> str:
        trap.symlink_to(victim)
        return NEW

    with pytest.raises(UsageError, match="File exists"):
        _files.update(path, set_trap)
    assert (victim.read_text(), path.read_text(), trap.is_symlink()) == (OLD, OLD, True)


def test_a_link_in_the_place_of_the_lock_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.with_name(f".{path.name}.lock").symlink_to("victim")
    with pytest.raises(UsageError, match=r"\.lock is a symbolic link"):
        _files.update(path, lambda: NEW)
    assert not (tmp_path / "victim").exists()
    assert path.read_text() == OLD


def test_a_read_only_file_is_not_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write any file
    with pytest.raises(UsageError, match="read-only: allow writing or name another place"):
        _files.update(path, lambda: NEW)
    whole(path, OLD)


def test_more_than_can_be_read_back_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "LARGEST", 10)
    with pytest.raises(UsageError, match="expected at most 10 bytes, got 39: name another place"):
        _files.update(path, lambda: NEW)
    whole(path, OLD)


def test_what_a_killed_writer_left_is_removed_and_its_neighbour_s_is_not(path: Path) -> None:
    other = path.with_name(".f1x.json.0.partial")  # `path` as a pattern would match it
    for name in (f".{path.name}.0123.partial", f".{path.name}.lock", other.name):
        path.with_name(name).write_text("")
    _files.update(path, lambda: NEW)
    assert sorted(os.listdir(path.parent)) == sorted([path.name, other.name])


@pytest.fixture(params=[True, False], ids=["with the system's lock", "without"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(_files, "fcntl", None)
    return request.param


def test_a_writer_waits_for_another_only_so_long(path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "PATIENCE", 0.05)
    with path.with_name(f".{path.name}.lock").open("w") as held:
        if locks:
            fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another process holds .*\.lock for 0 seconds: end it, or remove"):
            _files.update(path, lambda: NEW)
    assert path.read_text() == OLD


def test_a_file_system_without_locks_still_has_one_writer_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(_files, "PATIENCE", 0.05)

    def meanwhile() -> str:
        with pytest.raises(UsageError, match="another process holds"):
            _files.update(path, lambda: "never")
        return NEW

    _files.update(path, meanwhile)
    whole(path, NEW)


COUNT = """
import sys, types
from pathlib import Path
package = types.ModuleType("normkit")
package.__path__ = [sys.argv[1]]
sys.modules["normkit"] = package
from normkit import _files
if sys.argv[3] == "without":
    _files.fcntl = None
path = Path(sys.argv[2])
for _ in range(25):
    _files.update(path, lambda: str(int(path.read_text()) + 1))
"""


@pytest.mark.parametrize("lock", ["with", "without"])
def test_eight_processes_count_to_two_hundred(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    command = [sys.executable, "-c", COUNT, str(Path(_files.__file__).parent), str(path), lock]
    processes = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait(120) for process in processes] == [0] * 8
    whole(path, "200")
