"""The file as text: whole, small, in two languages, true to the reference, and alone in the world."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import normkit
from normkit.learn import markup, page, runs, verdicts
from normkit.studies import STUDIES

SOURCE = Path(normkit.__file__).parent
TEXTS = {
    name: (SOURCE / "learn" / "sections" / f"{name}.html").read_text(encoding="utf-8") for name, _ in page.SECTIONS
}


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))


def test_it_is_one_small_file_that_names_no_other(html: str) -> None:
    assert len(html.encode()) < 3_000_000
    assert len((SOURCE / "learn" / "runs.json").read_bytes()) <= 1_000_000
    for tag, attributes in Elements(html).found:
        assert tag not in {"iframe", "object", "embed"}
        for name in ("src", "href", "action"):
            assert re.match(r"#|data:", attributes.get(name, "#")), (tag, attributes)
    assert "default-src 'none'" in html
    assert "connect-src 'none'" in html


def test_ten_sections_with_a_title_a_guess_an_exercise_and_something_to_move(html: str) -> None:
    found = Elements(html).found
    assert [a["id"] for tag, a in found if tag == "section"] == [anchor for _, anchor in page.SECTIONS]
    assert sum(tag == "h2" for tag, _ in found) == len(page.SECTIONS) == 10
    for name, text in TEXTS.items():
        for macro in ("guess", "reference", "verdict", "exercise"):
            assert text.count("{{" + macro) == 1, (name, macro)
        assert "{{range" in text
        assert "$" in text, f"{name} shows no formula"


def test_ranges_can_be_moved_both_ways_from_the_start(html: str) -> None:
    ranges = [a for tag, a in Elements(html).found if tag == "input" and a["type"] == "range"]
    assert len(ranges) >= 25
    for a in ranges:
        low, high, value = (float(a[name]) for name in ("min", "max", "value"))
        assert low <= value < high, a
        assert "disabled" not in a


@pytest.mark.parametrize("name", TEXTS)
def test_the_lines_shown_stand_in_the_reference(name: str) -> None:
    for file, lines in re.findall(r"\{\{reference (\S+)\n(.*?)\}\}", TEXTS[name], re.DOTALL):
        code = [line.strip() for line in (SOURCE / "reference" / file).read_text().splitlines()]
        assert [line for line in lines.splitlines() if line.strip() not in code] == []


@pytest.mark.parametrize("name", TEXTS)
def test_a_verdict_names_studies_that_exist_or_are_planned_and_no_word(name: str) -> None:
    (given,) = re.findall(r"\{\{verdict (.*)\n", TEXTS[name])
    assert given
    studies = set(given.split()) - {"exact", "contested"}
    assert studies <= set(STUDIES)
    assert not {"supported", "undecided"} & set(re.findall(r"\w+", TEXTS[name]))


def test_the_word_of_a_verdict_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "measured", lambda: {"small_batch": "not supported"})
    made = markup.expand("{{verdict contested small_batch group_count\n[[so || 如此]]}}", "here")
    badges = re.findall(r'class="badge ([\w-]+)".*?lang="en">([^<]+)<', made)
    assert badges == [
        ("contested", "contested"),
        ("not-supported", "not supported"),
        ("not-measured-yet", "not measured yet"),
    ]


def test_no_word_is_of_a_study_that_is_not_there() -> None:
    assert set(verdicts.measured()) <= set(STUDIES)
    assert set(verdicts.measured().values()) <= {"supported", "not supported", "undecided"}


@pytest.mark.parametrize("name", TEXTS)
def test_a_formula_colours_what_a_control_moves(name: str) -> None:
    controls = set(re.findall(r"\{\{(?:range|choice) (\w+)", TEXTS[name]))
    formulas = " ".join(re.findall(r"\$(.+?)\$", TEXTS[name].split("\n===\n")[3]))
    coloured = set(" ".join(re.findall(r"\\sym\{([^{}]*)\}", formulas)).split())
    assert coloured
    assert coloured <= controls


@pytest.mark.parametrize("name", TEXTS)
def test_every_control_has_a_use_in_the_script(name: str) -> None:
    script = (SOURCE / "learn" / "sections" / f"{name}.js").read_text(encoding="utf-8")
    for control in re.findall(r"\{\{(?:range|choice) (\w+)", TEXTS[name]):
        assert re.search(rf"\b{control}\b", script), control
    for action in re.findall(r"\{\{button (\w+)", TEXTS[name]):
        assert re.search(rf"\b{action}(:|\()", script), action


def test_both_languages_say_every_text(html: str) -> None:
    spans = re.findall(r'<span lang="en">(.*?)</span><span lang="zh">(.*?)</span>', html, re.DOTALL)
    assert len(spans) > 150
    for english, chinese in spans:
        assert english.strip()
        assert re.search(r"[\u4e00-\u9fff]", chinese), chinese
    assert html.count('<span lang="en">') == html.count('<span lang="zh">')


@pytest.mark.parametrize("language", page.LANGUAGES)
def test_it_opens_in_the_language_that_was_asked_for(collected: dict[str, Any], language: str) -> None:
    assert page.render(collected, language).startswith(f'<!doctype html>\n<html lang="{language}">')


def test_a_served_page_may_speak_to_its_server(collected: dict[str, Any]) -> None:
    text = page.render(collected, "zh", served=True)
    assert "connect-src 'self'" in text
    assert '<html lang="zh" data-served>' in text


def test_embedded_numbers_are_finite_and_cannot_end_their_element(collected: dict[str, Any]) -> None:
    text = page.embedded({**collected, "four": "</script><!--"})
    assert "<" not in text
    assert json.loads(text)["four"] == "</script><!--"


def test_the_trainings_are_those_of_the_rule() -> None:
    data = runs.shipped()
    assert data["rule"] == runs.rule(), "runs.py was changed: make learn-data"
    assert re.fullmatch(r"[0-9a-f]{12}", data["commit"])
    race = data["race"]
    assert len(race["curves"]) == len(race["norms"]) * len(race["starts"]) * len(race["batches"]) * len(race["rates"])
    assert len(race["curves"]) > 200


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{{rnage a 0 1}}", "no macro is called rnage"), ("[[one", "is left over"), ("$\\frac{a}$", "is left over")],
)
def test_a_slip_in_a_text_does_not_reach_the_page(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        markup.expand(text, "here")


def test_a_formula_nests() -> None:
    made = markup.formula(r"\frac{1}{\sqrt{\sym{eps}{ε} + x_{i}}}")
    assert made.count("<span") == made.count("</span>") == 5
    assert '<b class="sym" data-sym="eps">ε</b>' in made
    assert "{" not in made
