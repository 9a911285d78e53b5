"""One page for all tests of a session: its numbers take seconds."""

from typing import Any

import pytest

from normkit.learn import numbers, page


@pytest.fixture(scope="session")
def collected() -> dict[str, Any]:
    return numbers.collect()


@pytest.fixture(scope="session")
def html(collected: dict[str, Any]) -> str:
    return page.render(collected, "en")
