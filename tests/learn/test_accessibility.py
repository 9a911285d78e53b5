"""axe-core finds nothing on the page: both languages and colour schemes, wide and narrow, and all of it open."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from normkit.learn import page as pages
from tests.learn.test_browser import move_everything, opened, page  # noqa: F401  # fixtures
from tests.learn.test_served import served  # noqa: F401  # a fixture
from tests.studies import browser

pytestmark = pytest.mark.browser


def axe() -> str:
    """axe.min.js out of the package that ships it; importing the package would ask for a driver that is not needed."""
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        (pytest.fail if browser.required() else pytest.skip)("axe-core is not installed: make setup")
    return (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")


def violations(page: browser.Page) -> list[str]:  # noqa: F811
    """Each broken rule with the elements that break it."""
    found: list[dict[str, Any]] = page.evaluate(
        f"if (!window.axe) {{ {axe()} }};"
        "return axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v =>"
        "  ({id: v.id, nodes: v.nodes.map(n => n.target.join(' ') + ': ' + n.failureSummary)})))"
    )
    return [f"{rule['id']}: {node}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_axe_finds_nothing(page: browser.Page, language: str, scheme: str, width: int) -> None:  # noqa: F811
    page.resize(width)
    page.colour_scheme(scheme)
    page.evaluate(f"document.querySelector('[data-language={language}]').click()")
    assert violations(page) == []
    move_everything(page)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert violations(page) == []


@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_axe_finds_nothing_on_the_served_page(served: browser.Page, language: str) -> None:  # noqa: F811
    """With its uploads, free values and the library's answers."""
    served.evaluate(f"document.querySelector('[data-language={language}]').click()")
    assert served.evaluate("return document.querySelectorAll('input[type=file]').length") > 0
    move_everything(served)
    served.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    assert violations(served) == []


def test_axe_would_find_something(page: browser.Page) -> None:  # noqa: F811
    page.evaluate("document.querySelector('main label').remove()")
    assert [line for line in violations(page) if line.startswith("label:")]
