"""The pages under docs/studies are those that the studies generate."""

from pathlib import Path

import pytest

from normkit.studies.pages import pages

FOLDER = Path(__file__).parents[2] / "docs" / "studies"


@pytest.mark.parametrize("name", pages())
def test_the_page_is_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], "run `make docs`"


def test_no_page_is_left_over() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == set(pages())
