"""The report in a real browser: its plots are there, it asks the network for nothing, and no name can break it."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from normkit.studies import report

from . import browser
from .results import HOSTILE, results_and_plots

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if reason := browser.missing():
        (pytest.fail if browser.required() else pytest.skip)(reason)
    folder = tmp_path_factory.mktemp("browser")
    path = folder / "report.html"
    path.write_text(report.render(*results_and_plots()), encoding="utf-8")
    with browser.page(folder / "profile") as opened:
        opened.open(path)
        yield opened


def test_every_plot_is_drawn_and_named(page: browser.Page) -> None:
    boxes = page.evaluate(
        "return [...document.querySelectorAll('figure svg[role=img]')].map(svg => {"
        " const box = svg.getBoundingClientRect(), inner = svg.getBBox();"
        " return [box.width, box.height, inner.width, inner.height, svg.querySelectorAll('path,use').length,"
        "  document.getElementById(svg.getAttribute('aria-labelledby').split(' ')[0]).textContent.length] })"
    )
    assert len(boxes) == 4
    for width, height, inner_width, inner_height, marks, title in boxes:
        assert min(width, inner_width) > 300
        assert min(height, inner_height) > 80
        assert marks > 10
        assert title > 5


def test_no_id_stands_twice(page: browser.Page) -> None:
    twice = page.evaluate(
        "const seen = new Set(); return [...document.querySelectorAll('[id]')].map(e => e.id)"
        ".filter(id => seen.has(id) || !seen.add(id))"
    )
    assert twice == []


def test_nothing_is_asked_of_the_network_and_the_console_is_silent(page: browser.Page) -> None:
    asked = page.requests()
    assert asked  # the log is on: the page itself is in it
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []
    assert page.evaluate("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert page.console() == []


def test_a_hostile_name_is_shown_and_not_run(page: browser.Page) -> None:
    assert page.evaluate("return window.broken === undefined")
    assert page.evaluate("return document.querySelectorAll('main img').length") == 0
    assert HOSTILE in page.evaluate("return document.body.innerText")


def test_the_numbers_in_the_page_are_the_results(page: browser.Page) -> None:
    results, _ = results_and_plots()
    embedded = page.evaluate("return JSON.parse(document.getElementById('results').textContent)")
    assert embedded["fast"] == results["fast"]
    assert embedded["about"] == results["about"]


@pytest.mark.parametrize("width", [1200, 420], ids=["wide", "phone"])
def test_nothing_sticks_out_sideways(page: browser.Page, width: int) -> None:
    page.resize(width)
    assert page.evaluate("return document.documentElement.scrollWidth <= window.innerWidth")


def test_the_three_answers_to_a_question_fit_a_phone(page: browser.Page) -> None:
    page.resize(390)
    width, room = page.evaluate(
        "const table = document.querySelector('#right table');"
        "return [table.scrollWidth, table.parentElement.clientWidth]"
    )
    assert width <= room
    shown = page.evaluate("return [...document.querySelectorAll('#right tbody td')].map(e => e.offsetWidth > 0)")
    assert len(shown) % 3 == 0
    assert all(shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_in_plots_stand_out_from_the_paper(page: browser.Page, scheme: str) -> None:
    """WCAG's contrast of every text colour in a plot with the panel behind it is at least 4.5."""
    page.resize(1200)
    page.colour_scheme(scheme)
    contrasts = page.evaluate(
        browser.CONTRAST + "const paper = getComputedStyle(document.querySelector('.panel')).backgroundColor;"
        "return [...document.querySelectorAll('figure text, .panel td, .panel th, .panel p')].map(t => {"
        "  const style = getComputedStyle(t); return contrast(t.closest('svg') ? style.fill : style.color, paper) })"
    )
    assert len(contrasts) > 50
    assert min(contrasts) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_shows_more_than_paper(page: browser.Page, scheme: str, tmp_path: Path) -> None:
    from PIL import Image

    page.resize(1200)
    page.colour_scheme(scheme)
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    assert picture.width >= 1000
    colours = picture.getcolors(picture.width * picture.height)
    assert colours is not None
    assert len(colours) > 100
    commonest = max(colours)[1]
    assert (sum(commonest) > 600) == (scheme == "light")
