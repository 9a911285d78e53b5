"""The shape of the native core: headers are found, families are apart, chains of includes are short."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
FILES = sorted(path for pattern in ("**/*.h", "**/*.cpp") for path in NATIVE.glob(pattern))
SOURCES = [path for path in FILES if path.parent.name != "test"]
FAMILIES = ("channel", "group", "layer", "element")
DEEPEST = 9


@cache
def included(path: Path) -> tuple[Path, ...]:
    """The project's headers that a file names."""
    names = re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)
    return tuple(NATIVE / name for name in names)


@cache
def reached(path: Path) -> frozenset[Path]:
    """All headers that compiling a file reads."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        new = [header for header in included(waiting.pop()) if header not in found]
        found.update(new)
        waiting += new
    return frozenset(found)


def depth(path: Path, above: tuple[Path, ...] = ()) -> int:
    """How many headers lie one inside the other, at most."""
    return max((1 + depth(header, (*above, path)) for header in included(path) if header not in above), default=0)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(NATIVE)))
def test_a_file_finds_its_headers_and_none_lies_too_deep(path: Path) -> None:
    assert all(header.exists() for header in included(path)), included(path)
    assert depth(path) <= DEEPEST


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_norms_includes_no_other_family(family: str) -> None:
    units = [path for path in SOURCES if path.parent.name == family]
    assert units
    for path in units:
        assert {header.parent.name for header in reached(path)}.isdisjoint(set(FAMILIES) - {family}), path


def test_only_the_sweeps_units_compile_all_forms() -> None:
    """What multiplies a build: forms of activation and gate. Kernels look their sweeps up (docs/design/native.md)."""
    heavy = {NATIVE / "planar" / name for name in ("write.h", "gradient_write.h", "frozen.h")}
    heavy |= {NATIVE / "rows" / name for name in ("write.h", "gradient_write.h")}
    users = {path.name for path in SOURCES if path.suffix == ".cpp" and heavy & reached(path)}
    assert users == {"planar_sweeps.cpp", "rows_sweeps.cpp"}
