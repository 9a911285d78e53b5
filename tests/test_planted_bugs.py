"""The list of bugs that the tests must notice (tools/planted.py) still fits the code; `make mutants` plants them."""

from __future__ import annotations

import pytest
from tools.mutation import ROOT
from tools.planted import BUGS


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_still_finds_its_text_and_its_tests(name: str) -> None:
    bug = BUGS[name]
    assert bug.old in (ROOT / "src" / "normkit" / bug.file).read_text()
    assert bug.old != bug.new
    assert (ROOT / bug.tests).exists()
