"""The page in a real browser: its arithmetic is the reference's, it speaks two languages, it asks no network."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from normkit.learn import page as pages
from normkit.reference.batch_norm import batch_norm, batch_norm_backward
from tests.studies import browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if reason := browser.missing():
        (pytest.fail if browser.required() else pytest.skip)(reason)
    with browser.page(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(opened: browser.Page, html: str, tmp_path: Path) -> browser.Page:
    """The page as its reader first sees it."""
    path = tmp_path / "learn.html"
    path.write_text(html, encoding="utf-8")
    opened.open(path)
    return opened


def test_forward_and_backward_are_the_reference(page: browser.Page) -> None:
    """Within 1e-12 of the largest value, for |mean|/std up to 1e3 and eps down to 1e-8."""
    generator = torch.Generator().manual_seed(0)
    for size in (3, 4, 17, 1000):
        for kappa in (0.0, 30.0, 1e3):
            for eps in (1e-8, 1e-5, 0.1):
                x = torch.randn(size, generator=generator, dtype=torch.float64)
                x = (x - x.mean()) / x.std(correction=0) + kappa
                dy = torch.randn(size, generator=generator, dtype=torch.float64)
                gamma, beta = -1.7, 0.3
                given = ",".join(json.dumps(v) for v in (x.tolist(), gamma, beta, eps))
                y = page.evaluate(f"return window.normkit.forward({given})")
                back = page.evaluate(f"return window.normkit.backward({given},{json.dumps(dy.tolist())})")
                weight, bias = (torch.tensor([v], dtype=torch.float64) for v in (gamma, beta))
                truth, _, _ = batch_norm(x[:, None], weight, bias, eps)
                gradients = batch_norm_backward(dy[:, None], x[:, None], weight, eps)
                for ours, theirs in zip(
                    (y, back["dx"], back["dgamma"], back["dbeta"]), (truth, *gradients), strict=True
                ):
                    made = torch.tensor(ours, dtype=torch.float64).flatten()
                    largest = max(theirs.abs().max().item(), 1e-3)
                    assert (made - theirs.flatten()).abs().max() <= 1e-12 * largest


def test_the_console_is_silent_and_nothing_is_asked_of_the_network(page: browser.Page) -> None:
    move_everything(page)
    assert page.console() == []
    asked = page.requests()
    assert asked
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []
    assert page.evaluate("return performance.getEntriesByType('resource').map(e => e.name)") == []


def move_everything(page: browser.Page) -> None:
    """Every control to both of its ends and back, every choice, every button, every guess."""
    page.evaluate(
        "for (const input of document.querySelectorAll('main input')) {"
        "  const told = () => input.dispatchEvent(new Event('input', {bubbles: true}));"
        "  if (input.type === 'radio') { input.checked = true; told(); continue; }"
        "  const start = input.value;"
        "  for (const v of [input.min, input.max, start]) { input.value = v; told(); } }"
        "for (const button of document.querySelectorAll('main button'))"
        "  if (button.dataset.do !== 'copy') button.click();"
    )


def test_every_control_changes_what_its_section_shows(page: browser.Page) -> None:
    still = page.evaluate(
        "const shown = (place) => [...place.querySelectorAll('[data-out], .plot, [data-answer], .steps')]"
        "  .map(e => e.innerHTML + e.className + e.hidden + [...e.children].map(c => c.className)).join();"
        "const still = [];"
        "for (const input of document.querySelectorAll('main input[data-name]')) {"
        "  const place = input.closest('section');"
        "  const told = () => input.dispatchEvent(new Event('input', {bubbles: true}));"
        "  if (input.type === 'radio') continue;"
        "  const start = input.value, before = shown(place); let changed = false;"
        "  for (const v of [input.min, input.max]) { input.value = v; told(); changed ||= shown(place) !== before; }"
        "  input.value = start; told(); if (!changed) still.push(input.id); }"
        "return still"
    )
    assert set(still) <= {"shared-mean-groups"}  # of no effect but under group norm


@pytest.mark.parametrize("corner", ["min", "max", "each"])
def test_no_corner_shows_what_is_no_number(page: browser.Page, corner: str) -> None:
    """All controls at one end, or each by itself at both: no NaN in a text or a picture, no error in the console."""
    ends = "'min', 'max'" if corner == "each" else f"'{corner}'"
    found = page.evaluate(
        "const bad = [], wrong = /NaN|undefined|null/;"
        "const tell = (e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) };"
        "const look = (place, where) => { for (const e of place.querySelectorAll('[data-out], .plot, output'))"
        "  if (wrong.test(e.innerHTML)) bad.push(where + ': ' + (e.dataset.out ?? e.dataset.plot ?? e.htmlFor)) };"
        "for (const place of document.querySelectorAll('main section')) {"
        "  const ranges = [...place.querySelectorAll('input[type=range]')];"
        "  const radios = [...place.querySelectorAll('input[type=radio]')];"
        "  for (const radio of [null, ...radios]) {"
        "    if (radio) { radio.checked = true; tell(radio, radio.value); }"
        f"    for (const end of [{ends}]) for (const range of ranges) {{"
        "      const start = range.value; tell(range, range[end]);"
        f"      if ({json.dumps(corner == 'each')}) {{ look(place, range.id + ' ' + end); tell(range, start); }} }}"
        "    look(place, place.id + ' ' + radio?.id); } }"
        "return [...new Set(bad)]"
    )
    assert found == []
    assert page.console() == []


@pytest.mark.parametrize(
    ("section", "typed", "out", "word"),
    [
        ("backward", {"x": "1 1 1 1"}, "word", "right"),
        ("backward", {"x": "−3, 5"}, "word", "right"),
        ("backward", {"x": "1000000 1000000.1 999999"}, "word", "right"),
        ("backward", {"x": "1; 2; 3", "dy": "1，0，0"}, "sum", "0"),
        ("one-step", {"weights": "0 0 0"}, "word", "no gradient"),
        ("one-step", {"weights": "1.4, 1.4"}, "word", "as promised"),
    ],
)
def test_own_numbers_take_the_place_of_the_sliders(
    page: browser.Page, section: str, typed: dict[str, str], out: str, word: str
) -> None:
    assert shown_after(page, section, [], {name: json.dumps(text) for name, text in typed.items()})[out] == word
    assert page.console() == []


@pytest.mark.parametrize("typed", ["1", "1 2 a", "1e7 2", "1 2 3 4 5 6 7 8 9"])
def test_own_numbers_that_do_not_fit_are_answered_by_a_line(page: browser.Page, typed: str) -> None:
    before = shown_after(page, "backward", [], {})
    assert shown_after(page, "backward", [], {"x": json.dumps(typed)}) == before
    said, invalid = page.evaluate(
        "const e = document.getElementById('backward-x');"
        "return [document.getElementById('backward-x-error').textContent, e.getAttribute('aria-invalid')]"
    )
    assert "please" in said
    assert invalid == "true"


def test_a_cell_that_is_clicked_is_looked_at(page: browser.Page) -> None:
    page.evaluate(
        "const cells = [...document.querySelectorAll('#shared-mean [data-plot=block] rect')];"
        "cells[8 * 4 * 2 + 8 + 5].dispatchEvent(new Event('click', {bubbles: true}))"  # norm 3, image 2, channel 6
    )
    state = page.evaluate(
        "const at = (name) => document.querySelector(`#shared-mean-${name}`).value;"
        "return [at('image'), at('channel'), document.querySelector('#shared-mean input:checked').value]"
    )
    assert state == ["2", "6", "instance"]


def test_a_guess_is_answered(page: browser.Page) -> None:
    answers = page.evaluate(
        "return [...document.querySelectorAll('main section')].map(place => {"
        "  place.querySelector('[data-check]').click();"
        "  const box = place.querySelector('.truth');"
        "  return [box.hidden, box.querySelector('svg').textContent] })"
    )
    assert len(answers) == 10
    for hidden, text in answers:
        assert not hidden
        assert "computed" in text
        assert "–" not in text
        assert "∞" not in text


@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_one_language_is_shown_and_the_document_says_which(page: browser.Page, language: str) -> None:
    page.evaluate(f"document.querySelector('[data-language={language}]').click()")
    assert page.evaluate("return document.documentElement.lang") == language
    shown = page.evaluate(
        "return [...document.querySelectorAll('main span[lang]')]"
        ".filter(e => e.getClientRects().length).map(e => e.lang)"
    )
    assert len(shown) > 100
    assert set(shown) == {language}


def test_every_picture_and_control_has_a_name_and_no_id_stands_twice(page: browser.Page) -> None:
    nameless = page.evaluate(
        "return [...document.querySelectorAll('main [role=img]')].filter(e =>"
        "  !document.getElementById(e.getAttribute('aria-labelledby')).textContent.trim() || !e.querySelector('svg *'))"
        ".concat([...document.querySelectorAll('main input')].filter(e => !e.labels.length)).map(e => e.outerHTML)"
    )
    assert nameless == []
    twice = page.evaluate(
        "const seen = new Set(); return [...document.querySelectorAll('[id]')].map(e => e.id)"
        ".filter(id => seen.has(id) || !seen.add(id))"
    )
    assert twice == []


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("language", pages.LANGUAGES)
def test_nothing_sticks_out_sideways(page: browser.Page, width: int, language: str) -> None:
    page.evaluate(f"document.querySelector('[data-language={language}]').click()")
    page.resize(width)
    assert page.evaluate("return document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_paper(page: browser.Page, scheme: str) -> None:
    """WCAG's contrast of each text with what is behind it is at least 4.5."""
    page.resize(1400)
    page.colour_scheme(scheme)
    faint = page.evaluate(
        browser.CONTRAST
        + "return [...document.querySelectorAll('main p, main label, main h2, main small, main b, main output,'"
        "  + 'main span.value, main pre, main li, main figcaption, main summary, main button, .plot text.muted')]"
        ".filter(t => t.getClientRects().length && t.textContent.trim()).map(t => {"
        "  const style = getComputedStyle(t), ink = t.closest('svg') ? style.fill : style.color;"
        "  return [contrast(ink, behind(t)), t.outerHTML.slice(0, 90)] })"
        ".filter(([contrast]) => contrast < 4.5)"
    )
    assert faint == []


def test_a_deep_link_leads_to_its_section(page: browser.Page) -> None:
    page.evaluate("document.documentElement.style.scrollBehavior = 'auto'; location.hash = '#test-time'")
    assert abs(page.evaluate("return document.getElementById('test-time').getBoundingClientRect().top")) < 40


def shown_after(
    page: browser.Page, section: str, choices: list[str], values: Mapping[str, float | str]
) -> dict[str, str]:
    """What a section's readouts say after its reader chose and moved these."""
    chosen = "".join(f"tell('{section}-{choice}', (e) => {{ e.checked = true }});" for choice in choices)
    put = "".join(f"tell('{section}-{name}', (e) => {{ e.value = {value} }});" for name, value in values.items())
    return page.evaluate(
        "const tell = (id, act) => { const e = document.getElementById(id); act(e);"
        "  e.dispatchEvent(new Event('input', {bubbles: true})) };"
        f"{chosen}{put}"
        f"return Object.fromEntries([...document.querySelectorAll('#{section} [data-out]')]"
        ".map(e => [e.dataset.out, e.textContent]))"
    )


@pytest.mark.parametrize("slip", ["right", "mean", "variance", "m", "eps"])
def test_a_slip_turns_the_gradient_check_red(page: browser.Page, slip: str) -> None:
    said = shown_after(page, "backward", [f"wrong-{slip}"], {})
    assert said["word"] == ("right" if slip == "right" else "wrong")
    assert (said["sum"] == "0") == (slip != "mean")  # as the answer of the exercise says


@pytest.mark.parametrize(
    ("aim", "weight", "word"), [("fall", 0.8, "as promised"), ("fall", 1.4, "wrong way!"), ("rise", 1.4, "overshoots")]
)
def test_a_step_goes_the_wrong_way_where_the_text_says(page: browser.Page, aim: str, weight: float, word: str) -> None:
    said = shown_after(page, "one-step", [f"aim-{aim}"], {"depth": 16, "w": weight, "rate": -1.5})
    assert said["word"] == word


def test_shift_and_scale_leave_the_outputs_alone(page: browser.Page) -> None:
    before = shown_after(page, "four-numbers", [], {})["y"]
    for button in ("shift", "stretch"):
        page.evaluate(f"document.querySelector('#four-numbers [data-do={button}]').click()")
        said = shown_after(page, "four-numbers", [], {})
        assert said["y"] == before
        assert "4.000" not in said["mean"]


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group"])
def test_feature_maps_are_those_of_normkit(page: browser.Page, norm: str) -> None:
    away = shown_after(page, "shared-mean", [f"norm-{norm}"], {})["away"]
    assert "10⁻⁸" in away or "10⁻⁷" in away  # the page's copy has seven decimals
