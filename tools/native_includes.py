"""Which headers of native/ a file of it includes, and which reading it reaches."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[1] / "native"


@cache
def included(path: Path, native: Path = NATIVE) -> tuple[Path, ...]:
    """The project's headers that a file names: in native/ or a copy of it, of the stand-alone test beside the file."""
    home = path.parent if path.parent.name == "test" else native
    names = re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    return tuple((home / name).resolve() for name in names)


@cache
def reached(path: Path, native: Path = NATIVE) -> frozenset[Path]:
    """All headers of the project that compiling a file reads."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        new = [header for header in included(waiting.pop(), native) if header not in found]
        found.update(new)
        waiting += new
    return frozenset(found)
