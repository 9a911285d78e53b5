"""Arrays of numbers out of a .npz file that anybody may have made.

Rules: what an array will take is known, from its header, before it is allocated or decompressed; a header is matched,
not evaluated, and names a plain type of numbers, so no pickle is ever opened; an archive's own table is read only up to
1 MiB. What does not fit is one of ERRORS, with a text of one line.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._reading import open_plain

if TYPE_CHECKING:
    import numpy as np

MOST_NUMBERS = 1 << 28  # of an array: 1 GiB as float32, and a study holds three copies
PIECE = 1 << 20  # bytes read at once
LARGEST = 2 * 8 * MOST_NUMBERS + PIECE  # bytes of a file: two arrays of the widest numbers
# what zipfile and zlib raise over damaged or hostile bytes; KeyError: no such array; RuntimeError: encrypted
ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{\s*'descr': '([^']{1,40})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,19},? ?)*)\),? *\}\s*"
)


@dataclass(frozen=True)
class Header:
    """What an array says of itself; `start`: bytes before its first number."""

    dtype: str
    columns_first: bool
    shape: tuple[int, ...]
    start: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype[2:])


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`, for `header` and `read`."""
    with open_plain(path, LARGEST) as file, unpacked(file.raw) as archive:
        yield archive


@contextmanager
def unpacked(raw: Any) -> Iterator[zipfile.ZipFile]:
    """The archive in `raw`: an unbuffered file, or bytes in memory (`io.BytesIO`)."""
    if raw.read(len(_MAGIC)) == _MAGIC:
        raise ValueError("expected a .npz, found a .npy of one array: np.savez(path, images=..., labels=...)")
    with _InPieces(raw) as pieces, zipfile.ZipFile(pieces) as archive:
        yield archive


def header(archive: zipfile.ZipFile, name: str) -> Header:
    """The header of the array called `name`; its size and that of its entry in the archive agree."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"expected {name} stored or deflated, got compression {entry.compress_type}")
    with archive.open(entry) as member:
        start = member.read(10)
        if start[:8] != _MAGIC + b"\x01\x00" or len(start) < 10:
            raise ValueError(f"{name} does not begin as an array of .npy version 1.0")
        length = int.from_bytes(start[8:], "little")
        found = _HEADER.fullmatch(member.read(length).decode("latin-1"))
    if not found:
        raise ValueError(f"expected {name} to be a plain array of numbers, its header says something else")
    dtype, order, sizes = found.groups()
    if not re.fullmatch(r"[<>|=][biuf][1248]", dtype):
        raise ValueError(f"expected {name} of numbers of at most 8 bytes, got {dtype}")
    made = Header(dtype, order == "True", tuple(int(size) for size in re.findall(r"\d+", sizes)), 10 + length)
    if math.prod(made.shape) > MOST_NUMBERS:
        raise ValueError(f"expected at most {MOST_NUMBERS:,} numbers in {name}, its header claims {made.shape}")
    if made.start + made.bytes != entry.file_size:
        raise ValueError(f"{name} claims {made.start + made.bytes:,} bytes, the archive has {entry.file_size:,}")
    return made


def read(archive: zipfile.ZipFile, name: str, header: Header) -> np.ndarray:
    """The array, in the machine's byte order; the archive's checksum is verified."""
    import numpy as np

    values = bytearray()
    with archive.open(f"{name}.npy") as member:
        member.read(header.start)
        while piece := member.read(min(PIECE, header.bytes - len(values))):
            values += piece
    if len(values) != header.bytes:
        raise EOFError(f"{name} ends after {len(values):,} of {header.bytes:,} bytes")
    dtype = np.dtype(header.dtype)
    array = np.frombuffer(values, dtype).astype(dtype.newbyteorder("="), copy=False)
    return array.reshape(header.shape, order="F" if header.columns_first else "C")


class _InPieces(io.BufferedReader):
    """A file that gives no more than PIECE at once: zipfile asks for an archive's whole table in one read."""

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(PIECE + 1 if size is None or not 0 <= size <= PIECE else size)
        if len(content) > PIECE:
            raise ValueError(f"expected an archive with a table of at most {PIECE:,} bytes")
        return content
