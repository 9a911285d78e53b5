"""docs/maths and the reference name the same things."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from normkit import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "maths").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_every_name_a_page_mentions_exists(page: Path) -> None:
    text = page.read_text()
    names = re.findall(r"\breference\.(\w+)", text)
    assert names
    for name in names:
        assert name in reference.__all__, name
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (page.parent / link).exists(), link


def test_every_public_name_is_on_a_page() -> None:
    mentioned = {name for page in PAGES for name in re.findall(r"\breference\.(\w+)", page.read_text())}
    assert set(reference.__all__) == mentioned
