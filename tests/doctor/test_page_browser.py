"""The page in a real browser: plots, the value under the pointer, phone and print, and names that must not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctor import pages
from tests.doctor.pages import HOSTILE, layers
from tests.studies import browser

pytestmark = pytest.mark.browser

_POINT = """
const svg = document.querySelectorAll('details.error svg')[%d], box = svg.getBoundingClientRect();
const [x, y] = svg.querySelector('%s').getAttribute('d').match(/[-\\d.]+/g).map(Number);
const at = {clientX: box.left + x * box.width / 300, clientY: box.top + y * box.height / 210};
svg.dispatchEvent(new PointerEvent('%s', at));
return document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent;
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[browser.Page, Path]]:
    if reason := browser.missing():
        (pytest.fail if browser.required() else pytest.skip)(reason)
    folder = tmp_path_factory.mktemp("page")
    for name, text in (
        ("plain", pages.page()),
        ("hostile", pages.page(HOSTILE)),
    ):
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    with browser.page(folder / "profile") as opened:
        yield opened, folder


@pytest.fixture
def page(driver: tuple[browser.Page, Path]) -> browser.Page:
    driver[0].resize(1400)
    driver[0].open(driver[1] / "plain.html")
    return driver[0]


@pytest.fixture
def hostile(driver: tuple[browser.Page, Path]) -> browser.Page:
    driver[0].resize(1400)
    driver[0].open(driver[1] / "hostile.html")
    return driver[0]


def test_every_layer_has_its_plots(page: browser.Page) -> None:
    titles = page.evaluate("return [...document.querySelectorAll('figcaption')].map(e => e.textContent)")
    assert titles == ["mean", "standard deviation, sqrt(var + eps)", "gamma"] * 3
    dots = page.evaluate(
        "return [...document.querySelectorAll('figure svg')].map("
        "svg => [...svg.querySelectorAll('path')].map(p => (p.getAttribute('d').match(/M/g) || []).length))"
    )
    assert dots == [[12, 0]] * 3 + [[0, 12], [0, 12], [12, 0]] + [[12, 0]] * 3


def test_the_value_under_the_pointer(page: browser.Page) -> None:
    text = page.evaluate(_POINT % (0, ".far", "pointermove"))
    layer = layers()[1]
    assert text.startswith("channel 0\nmean: running ")
    shown = [float(word.replace("−", "-")) for word in text.replace(",", "").split() if word[-1].isdigit()][1:]
    assert shown == pytest.approx([layer["running_mean"][0], layer["data_mean"][0]], rel=5e-3)
    assert page.evaluate(_POINT % (0, ".far", "pointerleave")) is None


def test_arrow_keys_go_through_the_channels(page: browser.Page) -> None:
    text = page.evaluate(
        "const svg = document.querySelector('details.error svg');"
        "for (let i = 0; i < 3; i++) svg.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}));"
        "return document.getElementById('tip').textContent"
    )
    assert text.startswith("channel 2\n")


def test_a_cell_of_the_strip_says_its_layer_and_opens_it(page: browser.Page) -> None:
    text = page.evaluate(
        "const cell = document.querySelectorAll('.cell')[2]; cell.dispatchEvent(new PointerEvent('pointerenter'));"
        "return document.getElementById('tip').textContent"
    )
    assert text.splitlines()[:2] == ["block1.norm2: nothing found", "BatchNorm2d, 12 channels"]
    opened = page.evaluate(
        "const all = document.querySelectorAll('details.layer'), before = all[2].open;"
        "document.querySelectorAll('.cell')[2].click(); return [before, all[2].open]"
    )
    assert opened == [False, True]


def test_the_strip_is_coloured_by_the_worst_finding(page: browser.Page) -> None:
    levels = page.evaluate("return [...document.querySelectorAll('.level')].map(e => e.className)")
    assert levels == ["level note", "level error", "level ok"]
    parts = page.evaluate(
        "const part = e => e.getBoundingClientRect().height / e.parentElement.getBoundingClientRect().height;"
        "return [...document.querySelectorAll('.share')].map(part)"
    )
    assert parts == pytest.approx([0, 0.83, 0], abs=0.01)


def test_a_hostile_name_is_shown_and_not_run(hostile: browser.Page) -> None:
    hostile.evaluate(_POINT % (0, ".far", "pointermove"))
    hostile.evaluate(
        "for (const c of document.querySelectorAll('.cell')) c.dispatchEvent(new PointerEvent('pointerenter'))"
    )
    assert hostile.evaluate("return window.broken === undefined")
    assert hostile.evaluate("return document.querySelectorAll('img, iframe, b-roken').length") == 0
    texts = hostile.evaluate("return [...document.querySelectorAll('.name')].map(e => e.textContent)")
    assert HOSTILE in texts
    tip = hostile.evaluate(
        "document.querySelectorAll('.cell')[1].dispatchEvent(new PointerEvent('pointerenter'));"
        "return document.getElementById('tip').textContent"
    )
    assert tip.startswith(HOSTILE)
    assert hostile.evaluate("return document.querySelectorAll('figure').length") == 9


def test_a_script_that_got_in_anyway_would_not_run(hostile: browser.Page) -> None:
    """The second wall: the policy names one script by its hash."""
    hostile.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s);"
        "const d = document.createElement('div'); d.innerHTML = '<img src=x onerror=\"window.broken=2\">';"
        "document.body.append(d)"
    )
    assert hostile.evaluate("return window.broken === undefined")
    hostile.console()  # what the policy refused is there; the next test begins with an empty log


def test_nothing_is_asked_of_the_network_and_the_console_is_silent(page: browser.Page) -> None:
    assert [address for address in page.requests() if not address.startswith(("file:", "data:"))] == []
    assert page.console() == []


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_nothing_sticks_out_sideways(driver: tuple[browser.Page, Path], width: int, name: str) -> None:
    page, folder = driver
    page.resize(width)
    page.open(folder / f"{name}.html")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(page: browser.Page, scheme: str) -> None:
    """WCAG's contrast of every text with its background is at least 4.5."""
    page.colour_scheme(scheme)
    contrasts = page.evaluate(
        browser.CONTRAST
        + "return [...document.querySelectorAll('p, h1, h2, h3, li, th, td, dt, dd, svg text, .badge, figcaption')]"
        "  .filter(e => e.textContent.trim()).map(e => { const s = getComputedStyle(e);"
        "  return contrast(e.closest('svg') ? s.fill : s.color, behind(e)) })"
    )
    page.colour_scheme("light")
    assert len(contrasts) > 80
    assert min(contrasts) >= 4.5


def test_print_opens_what_has_findings(page: browser.Page) -> None:
    opened = page.evaluate(
        "for (const d of document.querySelectorAll('details')) d.open = false;"
        "window.dispatchEvent(new Event('beforeprint'));"
        "return ['.layer', '.finding'].map(kind => [...document.querySelectorAll('details' + kind)].map(d => d.open))"
    )
    assert opened == [[True, True, False], [True, True]]
