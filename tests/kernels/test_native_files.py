"""The shape of the native core: headers are found, families are apart, chains of includes are short, constants have a
reason, and what was tried to choose them has a row (docs/data/native_tried.json)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tools import native_tried
from tools.native_includes import NATIVE, included, reached

FILES = sorted(path for pattern in ("**/*.h", "**/*.cpp") for path in NATIVE.glob(pattern))
SOURCES = [path for path in FILES if path.parent.name != "test"]
FAMILIES = ("channel", "group", "layer", "element")
DEEPEST = 9


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


NUMBER = r"(?:u?int\w+\()?\d[\d.* <)]*"
CONSTANT = re.compile(rf"^ *(?:static )?constexpr (?:int|int64_t|size_t|uintptr_t|double) k\w+ = {NUMBER}[,;]")


def unexplained(lines: list[str]) -> list[str]:
    """The lines of a file that give a constant a number and no reason: none behind it, none in front of its block."""
    found = []
    for i, line in enumerate(lines):
        if CONSTANT.match(line) and "//" not in line:
            above = next((other for other in reversed(lines[:i]) if not CONSTANT.match(other)), "")
            if not above.lstrip().startswith("//"):
                found.append(line)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(NATIVE)))
def test_a_constant_has_its_reason_beside_it(path: Path) -> None:
    assert unexplained(path.read_text().splitlines()) == []


def test_a_constant_without_a_reason_is_seen() -> None:
    assert unexplained(["using T = int;", "constexpr int kMost = 32;"]) == ["constexpr int kMost = 32;"]
    assert unexplained(["// two lines each", "constexpr int kMost = 32;", "constexpr int kLeast = 2;"]) == []
    assert unexplained(["static constexpr int64_t kMost = 32;  // L1 keeps them"]) == []


def test_what_was_tried_has_a_row_for_each_pointer() -> None:
    rows = native_tried.load()
    names = [row["id"] for row in rows]
    assert len(set(names)) == len(names)
    pointed = {name for found in native_tried.pointers().values() for name in found}
    assert len(pointed) > 20
    assert pointed <= set(names)
    page = (NATIVE.parent / "docs/design/native.md").read_text(encoding="utf-8")
    prose = page.partition("<!-- begin tried -->")[0]
    assert set(re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", prose)) <= set(names)
    assert re.findall(r"^## (\d+)\. ", prose, re.MULTILINE) == [str(i) for i in range(1, 11)]
    for row in rows:
        assert set(row) == {"id", "topic", *native_tried.COLUMNS}
        assert row["idea"]
        assert row["after"]
