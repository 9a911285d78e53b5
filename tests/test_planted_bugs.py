"""The list of bugs that the tests must notice (tools/planted.py) still fits the code; `make mutants` plants them."""

from __future__ import annotations

import pytest
from tools.mutation import ROOT
from tools.native_includes import NATIVE, reached
from tools.planted import BUGS
from tools.planted_native import NATIVE_BUGS


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_still_finds_its_text_and_its_tests(name: str) -> None:
    bug = BUGS[name]
    assert bug.old in (ROOT / "src" / "normkit" / bug.file).read_text()
    assert bug.old != bug.new
    assert (ROOT / bug.tests).exists()


@pytest.mark.parametrize("name", NATIVE_BUGS)
def test_a_planted_bug_of_the_kernels_still_finds_its_text_and_is_compiled(name: str) -> None:
    bug = NATIVE_BUGS[name]
    assert (NATIVE / bug.file).read_text(encoding="utf-8").count(bug.old) == 1
    assert bug.old != bug.new
    units = [unit for unit in NATIVE.rglob("*.cpp") if NATIVE / bug.file in {unit, *reached(unit)}]
    assert units, "no unit includes the file, so nothing would be compiled with the bug"
