"""The pages under docs/studies are those that the studies generate."""

import json
from pathlib import Path

import pytest

from normkit.studies import STUDIES
from normkit.studies.pages import pages

from .test_record import planted_record

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "studies"
RECORDS = {
    path.stem: json.loads(path.read_text("utf-8")) for path in sorted((DOCS / "data" / "studies").glob("*.json"))
}
PAGES = pages(RECORDS)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name], "run `make docs`"


def test_no_page_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)


def test_a_study_that_was_not_run_states_no_word() -> None:
    made = pages({})
    for name in STUDIES:
        assert "**Verdict.** The full preset has not been run yet, so no word is stated here." in made[f"{name}.md"]
        assert "svg" not in made[f"{name}.md"]
    assert made["README.md"].count("| not run yet |") == len(STUDIES)


def test_a_record_of_another_rule_states_no_word() -> None:
    record = planted_record("step_sign", "supported")
    page = pages({"step_sign": {**record, "rule_sha256": "0" * 64}})["step_sign.md"]
    assert "The rule has changed since the full preset was run on 2026-01-01 at abcdef0123" in page
    assert "supported" not in page.split("**The paper")[0].split("**Verdict.")[1]


def test_a_page_shows_what_was_found() -> None:
    made = pages({"step_sign": planted_record("step_sign", "supported")})
    page = made["step_sign.md"]
    assert "**Verdict: supported.**" in page
    assert "![Which way a gradient step goes](step_sign.svg)" in page
    assert made["step_sign.svg"].startswith("<svg")
    assert "--ink:#1c1f26" in made["step_sign.svg"]
    for part in STUDIES["step_sign"].parts:
        assert f"| {part.claim} |" in page
    assert "Resampling is optimistic" in page
    assert "| **supported** (100% of resamples) |" in made["README.md"]


def test_a_word_that_is_not_stated_says_why() -> None:
    record = planted_record("step_sign", "supported")
    withheld = record | {
        "verdict": record["verdict"] | {"word": "undecided"},
        "fresh": record["fresh"] | {"word": "undecided"},
    }
    made = pages({"step_sign": withheld})
    stated = "| **undecided**: the rule says supported (100% of resamples), on fresh seeds undecided |"
    assert stated in made["README.md"]
    assert "*Supported* is not stated, since the fresh seeds do not agree." in made["step_sign.md"]
    few = pages({"step_sign": withheld | {"stability": 0.9}})["step_sign.md"]
    assert "since fewer than 95% of the resamples agree and the fresh seeds do not agree." in few
    assert "is not stated" not in pages({"step_sign": record})["step_sign.md"]


def test_what_the_opposite_is_stands_where_a_part_is_contradicted() -> None:
    for word, shown in (("supported", False), ("not supported", True)):
        page = pages({"step_sign": planted_record("step_sign", word)})["step_sign.md"]
        assert ("*For the opposite*: the mean is on the other side of what was asked" in page) is shown


def test_rates_at_the_end_of_the_grid_are_named() -> None:
    assert "- none, gain 10: 0.01, the smallest, in 20 of 20 seeds" in PAGES["initialization.md"]
    assert "- sigmoid, both: 3.2, the largest, in 11 of 20 seeds" in PAGES["affine_ablation.md"]
    # its runs were stored with their parameters in two orders: an arm is one
    assert PAGES["small_batch.md"].count("in 19 of 20 seeds") == PAGES["small_batch.md"].count("of 20 seeds\n") == 1
    for name in ("depth", "group_count", "step_sign", "train_test_gap"):  # all within twice, no rates, one rate
        assert "end of the grid" not in PAGES[f"{name}.md"]
