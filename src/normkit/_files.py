"""The files that commands write: whole or not at all, one writer at a time, and only in the place of a plain file.

`update` writes a new file beside the old one, flushes it to the disk and renames it over the old one, all under a lock.
Rules: the new file's name is drawn at random and opened only if nothing has it, so no link there is followed; what a
killed writer left is removed by the next one, who holds the lock; a symbolic link, pipe, device or folder in the place
of the file is refused, never replaced.
"""

from __future__ import annotations

import errno
import glob
import os
import random
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import UsageError

try:
    import fcntl
except ImportError:  # Windows has none: the lock is then the existence of its file
    fcntl = None  # type: ignore[assignment]  # tested against None wherever it is used

PATIENCE = 60.0  # seconds to wait for another writer, who needs milliseconds
LARGEST = 32 << 20  # bytes: `_reading` takes no more, and JSON takes up to twenty times its size in memory
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # absent on Windows
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def update(path: Path, make: Callable[[], str | bytes], *, most: int | None = None) -> None:
    """Replace what `path` holds by `make()`, which is called under the lock and may read the file first.

    most: how many bytes it may be; None: what can be read back, LARGEST.

    Raises:
        UsageError: it cannot be written, and still holds what it held.
    """
    try:
        _verify(path)
        with _locked(path):
            _verify(path)
            made = make()
            content = made.encode() if isinstance(made, str) else made
            bound = LARGEST if most is None else most
            if len(content) > bound:
                raise OSError(
                    errno.EFBIG, f"expected at most {bound:,} bytes, got {len(content):,}: name another place"
                )
            _replace(path, content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {reason(error)}; what it held before is kept") from None


def prepare(path: Path) -> None:
    """Make the folder of `path`. OSError now where `update` would fail later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _verify(path)
    with _locked(path):
        pass


def reason(error: OSError) -> str:
    """What the system says, without errno and name: one line."""
    return error.strerror or str(error)


def kind(mode: int) -> str:
    """What a file of this mode is, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a plain file")


def _verify(path: Path) -> None:
    _verify_plain(path)
    if path.exists() and not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, f"{path.name} is read-only: allow writing or name another place")


def _verify_plain(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        text = f"{path.name or path} is {kind(mode)}, expected a plain file or none: move it away or name another place"
        raise OSError(errno.EINVAL, text)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        _write(partial, content, path)
        os.replace(partial, path)
    except FileExistsError:  # the name is somebody else's, and so is the file
        raise
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    with suppress(OSError):  # not every file system can flush a folder, and the file is whole in any case
        _flush_folder(path.parent)


def _write(partial: Path, content: bytes, old: Path) -> None:
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFUL, 0o666), "wb", 0) as file:
        with suppress(FileNotFoundError, AttributeError):  # no file yet; a system without fchmod
            os.fchmod(file.fileno(), stat.S_IMODE(old.stat().st_mode))
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path`: a file beside it that is there only while the lock is held.

    The lock is the system's where it has one, so that it ends with its process, however that ends.
    """
    lock = path.with_name(f".{path.name}.lock")
    patience = time.monotonic() + PATIENCE
    while (held := _try(lock)) is None:
        if time.monotonic() > patience:
            text = f"another process holds {lock} for {PATIENCE:.0f} seconds: end it, or remove that file if none does"
            raise TimeoutError(errno.ETIMEDOUT, text)
        time.sleep(random.uniform(0.002, 0.02))  # not in step with the others who wait
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            with suppress(OSError):
                left.unlink()  # of a writer that was killed: one that lives holds the lock
        yield
    finally:
        if fcntl is None:
            held.close()  # Windows removes no open file
        with suppress(OSError):
            lock.unlink()
        held.close()


def _try(lock: Path) -> IO[bytes] | None:
    """The open lock file, locked; None while another has it. Dropping the result unlocks it too.

    Whoever makes the file holds the lock; one that is there already can be taken over if its maker is gone, which only
    the system's own lock can tell.
    """
    try:
        held, made = _opened(lock, os.O_CREAT | os.O_EXCL), True
    except FileExistsError:
        _verify_plain(lock)
        if fcntl is None:
            return None
        try:
            held, made = _opened(lock, 0), False
        except FileNotFoundError:
            return None
    if fcntl is None:
        return held
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(held.fileno()), lock.lstat())  # else: the one before has removed this file
    except (BlockingIOError, FileNotFoundError):
        ours = False
    except OSError:  # a file system without locks
        ours = made
    if ours:
        return held
    held.close()
    return None


def _opened(lock: Path, flags: int) -> IO[bytes]:
    return os.fdopen(os.open(lock, os.O_RDWR | flags | _CAREFUL, 0o666), "r+b", 0)
