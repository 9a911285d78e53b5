"""How much memory the process may use, from made-up control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from normkit.kernels.memory import available

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "268435456\n"}, 1 << 28),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        ("0::/a/b\n", {"a/memory.max": "134217728", "a/b/memory.max": "max", "memory.max": "268435456"}, 1 << 27),
        ("4:memory:/c\n0::/\n", {"memory/c/memory.limit_in_bytes": "134217728"}, 1 << 27),
        ("5:cpu,memory:/seen/outside\n", {"memory/memory.limit_in_bytes": "134217728"}, 1 << 27),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        ("nonsense", {}, MACHINE),
        ("", {}, MACHINE),
    ],
)
def test_the_least_limit_holds(own: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    write(tmp_path / "own", own)
    for name, text in files.items():
        write(tmp_path / "groups" / name, text)
    assert available(tmp_path / "groups", tmp_path / "own") == expected


def test_this_machine_has_memory() -> None:
    assert 0 < available() <= MACHINE
    assert available(Path("/nowhere"), Path("/nowhere")) == MACHINE
