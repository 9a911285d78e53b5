"""A corpus of files that are not what a command expects: each entry makes one at a path."""

import io
import json
import os
import pickle
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Maker = Callable[[Path], object]


class Opened:
    """Leaves a trace if it is ever unpickled."""

    done = False

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _note, ()


def _note() -> None:
    Opened.done = True


def raw(content: bytes) -> Maker:
    return lambda path: path.write_bytes(content)


def _big(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room on the disk


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


# what is no file of text at all
PLACES: dict[str, Maker] = {
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "socket": _socket,
    "link to itself": lambda path: path.symlink_to(path.name),
    "a terabyte": _big,
}

# text that is no JSON document of ours, whatever the command
JSON: dict[str, Maker] = {
    **PLACES,
    "half": raw(b'{"format": "normkit-results/1", "runs": ['),
    "list": raw(b"[]"),
    "null": raw(b"null"),
    "number": raw(b"3"),
    "other object": raw(b"{}"),
    "not UTF-8": raw(b'{"format": "\xff\xfe"}'),
    "UTF-16": raw('{"format": 1}'.encode("utf-16")),
    "byte order mark": raw(b"\xef\xbb\xbf{}"),
    "zero bytes": raw(bytes(4096)),
    "nested lists": raw(b"[" * 200_000 + b"]" * 200_000),
    "nested objects": raw(b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
    "forty levels": raw(b'{"format": 1, "a": ' + b"[" * 40 + b"]" * 40 + b"}"),
    "NaN": raw(b'{"format": 1, "a": NaN}'),
    "infinity": raw(b'{"format": 1, "a": -Infinity}'),
    "beyond double": raw(b'{"format": 1, "a": 1e999}'),
    "ten thousand digits": raw(b'{"format": 1, "a": ' + b"9" * 10_000 + b"}"),
    "2^64": raw(b'{"format": 1, "a": 18446744073709551616}'),
    "half a surrogate": raw(b'{"format": 1, "\\ud800": 1}'),
    "a pickle": raw(pickle.dumps(Opened())),
}


def results(*runs: Any, **more: Any) -> Maker:
    return raw(json.dumps({"format": "normkit-results/1", "runs": list(runs), **more}).encode())


RUN = {"study": "s", "params": {}, "result": {}, "seconds": 1.0, "made_with": "v"}
RESULTS: dict[str, Maker] = {
    **JSON,
    "empty": raw(b""),
    "another format": raw(b'{"format": "normkit-results/0", "runs": []}'),
    "runs an object": raw(b'{"format": "normkit-results/1", "runs": {}}'),
    "run null": results(None),
    "run without fields": results({"study": "s"}),
    **{f"{field} a list": results({**RUN, field: [1]}) for field in RUN},
    "result NaN": results({**RUN, "result": {"loss": float("nan")}}),
}


def _figures(**changes: Any) -> Maker:
    from tests.bench.rows import document, row

    whole = json.loads(document(row()).to_json())
    for key, value in changes.items():
        *parents, last = key.split("__")
        place: Any = whole
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return raw(json.dumps(whole).encode())


FIGURES: dict[str, Maker] = {
    **JSON,
    "another format": _figures(format=7),
    "rows an object": _figures(rows={}),
    "row a number": _figures(rows=[3]),
    "no machine": _figures(machine=None),
    "machine of numbers": _figures(machine={"cpu": 3}),
    "one field more": _figures(rows__0__extra=1),
    "one field less": _figures(rows__0__rounds=None),
    "shape of lists": _figures(rows__0__case__shape=[[1], [2]]),
    "case a list": _figures(rows__0__case=[1]),
    "times in words": _figures(rows__0__forward_ms="fast"),
    "true for a number": _figures(rows__0__rounds=True),
    "peer a number": _figures(rows__0__peers__torch=1.0),
    "network a word": _figures(networks=["fast"]),
}


def npy(
    descr: str = "'|u1'",
    shape: str = "(700, 4, 4)",
    content: bytes = bytes(11200),
    version: bytes = b"\1\0",
    tail: str = "",
) -> bytes:
    """An array's bytes with a header of any text."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {tail}}}\n".encode()
    length = len(text).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + text + content


LABELS = npy("'<i8'", "(700,)", np.arange(700).__mod__(4).astype("<i8").tobytes())


def archive(
    images: bytes | None = None, labels: bytes | None = LABELS, how: int = zipfile.ZIP_DEFLATED, more: int = 0
) -> bytes:
    """A .npz of these two members."""
    images = npy(content=bytes(i % 251 for i in range(11200))) if images is None else images
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as made:
        made.writestr("images.npy", images)
        if labels is not None:
            made.writestr("labels.npy", labels)
        for number in range(more):
            made.writestr(f"{number}", b"")
    return buffer.getvalue()


def _saved(**arrays: np.ndarray) -> Maker:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return make


def _lying(claim: int) -> bytes:
    """The archive's table and the header of images.npy agree on `claim` bytes, which are not there."""
    images = npy(shape=f"({claim - 1000}, 1, 1)", content=b"")
    images += bytes(1000 - len(images) % 1000)
    whole = bytearray(archive(images, npy("'|u1'", f"({claim - 1000},)", b"")))
    place = whole.index(b"PK\x01\x02")
    header = len(npy(shape=f"({claim - 1000}, 1, 1)", content=b""))
    struct.pack_into("<I", whole, place + 24, header + claim - 1000)
    return bytes(whole)


def _encrypted() -> bytes:
    whole = bytearray(archive())
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    whole[whole.index(b"PK\x03\x04") + 6] |= 1
    return bytes(whole)


def _wrong_checksum() -> bytes:
    whole = bytearray(archive(how=zipfile.ZIP_STORED))
    whole[200] ^= 1
    return bytes(whole)


def _large_table() -> bytes:
    """The end of the archive says that its table takes 4 GB, which zipfile would read in one piece."""
    whole = bytearray(archive())
    struct.pack_into("<I", whole, whole.rindex(b"PK\x05\x06") + 12, 4_000_000_000)
    return bytes(whole)


WIDE = np.random.default_rng(0).integers(0, 255, (700, 4, 4), dtype=np.uint8)
EACH = np.arange(700) % 4
IMAGES: dict[str, Maker] = {
    **PLACES,
    "empty": raw(b""),
    "text": raw(b"images, labels\n"),
    "a .npy": raw(npy()),
    "a pickle": raw(pickle.dumps(Opened())),
    "a zip of nothing": raw(archive()[-22:]),
    "another zip": _saved(x=WIDE, y=EACH),
    "no labels": _saved(images=WIDE),
    "153 GiB": raw(archive(npy(shape="(700, 16384, 14336)", content=b""))),
    "more numbers than atoms": raw(archive(npy(shape=f"({10**18}, {10**18}, {10**18})"))),
    "a bomb": raw(archive(npy("'<f8'", "(700, 250, 250)", bytes(64)))),
    "a bomb of zeros": raw(archive(npy("'<f8'", "(1000000, 250, 250)", bytes(16 << 20)))),
    "a table that lies": raw(_lying(200_000_000)),
    "a table of 4 GB": raw(_large_table()),
    "a table of 2 MB": raw(archive(more=40_000)),
    "a header of 60 kB": raw(archive(npy(tail=" " * 60_000 + "'x': 1"))),
    "a header that computes": raw(archive(npy(shape="(__import__('os').getpid(), 4, 4)"))),
    "a header of brackets": raw(archive(npy(shape="(" * 9000 + ")" * 9000))),
    "a header of version 2": raw(archive(npy(version=b"\2\0"))),
    "a header of version 3": raw(archive(npy(version=b"\3\0"))),
    "no header": raw(archive(b"\x93NUMPY")),
    "negative sizes": raw(archive(npy(shape="(-700, -4, 4)"))),
    "no rows": raw(archive(npy(shape="(0, 4, 4)", content=b""), npy("'<i8'", "(0,)", b""))),
    "no columns": raw(archive(npy(shape="(700, 4, 0)", content=b""))),
    "no axes": raw(archive(npy(shape="()", content=b"1"), npy(shape="()", content=b"1"))),
    "seventy axes": raw(archive(npy(shape="(" + "1, " * 70 + ")", content=b"1"))),
    "flat": _saved(images=WIDE.reshape(700, 16), labels=EACH),
    "fewer bytes than claimed": raw(archive(npy(content=bytes(11199)))),
    "more bytes than claimed": raw(archive(npy(content=bytes(11201)))),
    "objects": _saved(images=np.array([Opened()] * 700, dtype=object), labels=EACH),
    "objects as labels": _saved(images=WIDE, labels=np.array([Opened()] * 700, dtype=object)),
    "long doubles": _saved(images=WIDE.astype(np.longdouble), labels=EACH),
    "complex": _saved(images=WIDE.astype(complex), labels=EACH),
    "dates": _saved(images=WIDE.astype("datetime64[D]"), labels=EACH),
    "words": _saved(images=WIDE.astype("U8"), labels=EACH),
    "records": _saved(images=np.zeros((700, 4, 4), dtype=[("a", "u1")]), labels=EACH),
    "labels of 2^62": _saved(images=WIDE, labels=EACH + 2**62),
    "labels of 2^63": _saved(images=WIDE, labels=EACH.astype(np.uint64) + np.uint64(2**63)),
    "labels of 10,000": _saved(images=WIDE, labels=EACH + 10_000),
    "negative labels": _saved(images=WIDE, labels=EACH - 1),
    "labels of floats": _saved(images=WIDE, labels=EACH.astype(float)),
    "labels too many": _saved(images=WIDE, labels=np.arange(701) % 4),
    "labels in pairs": _saved(images=WIDE, labels=np.zeros((700, 2), int)),
    "NaN": _saved(images=np.full((700, 4, 4), np.nan), labels=EACH),
    "one infinity": _saved(images=np.where(WIDE[0, 0, 0] == WIDE, np.inf, WIDE), labels=EACH),
    "beyond float32": _saved(images=WIDE * 1e300, labels=EACH),
    "all the same": _saved(images=np.ones((700, 4, 4)), labels=EACH),
    "the same in float32": _saved(images=1e9 + WIDE * 1e-9, labels=EACH),
    "encrypted": raw(_encrypted()),
    "packed with bzip2": raw(archive(how=zipfile.ZIP_BZIP2)),
    "packed with lzma": raw(archive(how=zipfile.ZIP_LZMA)),
    "a wrong checksum": raw(_wrong_checksum()),
    "cut in the middle": raw(archive()[: len(archive()) // 2]),
    "cut at the end": raw(archive()[:-10]),
    "not deflated": raw(archive()[:60] + bytes(200) + archive()[260:]),
}
