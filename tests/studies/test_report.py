"""The report's words and numbers, and that nothing in it can break out of its place."""

import json
import re

import pytest

from normkit.studies import report

from .results import HOSTILE, results_and_plots


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 3, "–"),
        (0.0, 3, "0"),
        (1.46271, 3, "1.46"),
        (-1.68531, 5, "−1.6853"),
        (8.0177e-9, 3, "8.02×10⁻⁹"),
        (2.39e104, 3, "2.39×10¹⁰⁴"),
        (1234.5, 3, "1,230"),
        (123456.0, 3, "123,000"),
        (99.96, 3, "100"),
    ],
)
def test_numbers_are_written_for_people(value: float | None, digits: int, text: str) -> None:
    assert report.number(value, digits) == text


def test_json_in_the_page_cannot_end_its_element_and_reads_back() -> None:
    results, _ = results_and_plots()
    text = report.embedded(results)
    assert "<" not in text
    assert json.loads(text) == json.loads(json.dumps(results))


def test_everything_from_outside_is_escaped() -> None:
    results, plots = results_and_plots()
    html = report.render(results, plots)
    assert HOSTILE not in html
    assert html.count("<script") == 2  # the page's own two


def test_nothing_is_loaded_from_an_address() -> None:
    html = report.render(*results_and_plots())
    assert re.findall(r'(?:src|srcset|data|action|poster)="(?!data:)[^"]*"', html) == []
    assert re.findall(r"url\((?!#)[^)]*\)|@import", html) == []
    assert "default-src 'none'" in html


def test_the_cards_count_what_the_tables_show() -> None:
    results, _ = results_and_plots()
    figures = [(card["figure"], card["unit"]) for card in report.cards(results)]
    assert figures == [("1", "of 2"), ("1.5×", "torch’s speed"), ("1", "of 3")]
    assert [card["anchor"] for card in report.cards({**results, "right": [], "fast": []})] == ["why"]


def test_a_page_of_studies_alone_speaks_of_no_acts() -> None:
    results, plots = results_and_plots()
    html = report.render({**results, "right": [], "fast": []}, plots)
    assert "Act " not in html
    assert html.count(">Why normalize?</h") == 1  # the title, and no section of the same name below it


def test_the_studies_are_listed_before_the_first_of_them() -> None:
    results, plots = results_and_plots()
    html = report.render(results, plots)
    names = [study["name"] for study in results["studies"]]
    assert len(names) > 1
    listed = html.split('<nav aria-label="The studies">')[1].split("</nav>")[0]
    assert [name for name in names if f'href="#study-{name}"' in listed] == names
    assert all(f'id="study-{name}"' in html for name in names)
    alone = report.render({**results, "studies": results["studies"][:1]}, plots)
    assert 'aria-label="The studies"' not in alone


def test_the_geometric_mean_is_that_of_ratios() -> None:
    assert report.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)
