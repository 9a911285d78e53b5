"""Each study's own rule can support its claim, contradict it, and leave it open."""

import re

import pytest

from normkit.studies import STUDIES, Preset
from normkit.studies.conduct import FULL_SEEDS, QUICK_SEEDS, blocks

from .planted import planted

WORDS = ("supported", "not supported", "undecided")


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", STUDIES)
def test_the_rule_finds_what_was_planted(name: str, word: str) -> None:
    verdict = STUDIES[name].judge(planted(name, word))
    assert verdict.word == word, verdict.sentence


@pytest.mark.parametrize("name", STUDIES)
def test_every_part_fails_when_its_effect_is_reversed(name: str) -> None:
    """No part of a rule is a formality: with the opposite planted, none of them is called supported."""
    parts = STUDIES[name].judge(planted(name, "not supported")).parts
    assert [part.claim for part in parts if part.word == "supported"] == []


@pytest.mark.parametrize("name", STUDIES)
def test_plots_are_drawn_from_any_outcome(name: str) -> None:
    for plot in STUDIES[name].plot(planted(name, "undecided")):
        assert plot.svg.startswith("<svg")
        assert plot.description in plot.svg.replace("&#x27;", "'")
        assert "#0a00" not in plot.svg  # every stand-in colour became one of the page's
        series = re.findall(r'<g id="[^"]*-series-\d+">.*?(?=<g id=|\Z)', plot.svg, flags=re.S)
        assert [len(re.findall("<use ", group)) for group in series] == [
            len(re.findall("<circle [^>]*><title>[^<]+ at ", group)) for group in series
        ]  # the values of every mark are under the pointer
        assert series


@pytest.mark.parametrize("name", STUDIES)
def test_a_plan_repeats_itself_and_names_each_run_once(name: str) -> None:
    preset = Preset(quick=True, seeds=3, data="digits")
    plan = STUDIES[name].plan(preset)
    assert plan == STUDIES[name].plan(preset)
    assert len({repr(sorted(params.items())) for params in plan}) == len(plan)
    assert {params["seed"] for params in plan} == {0, 1, 2}
    assert not {params["seed"] for params in plan} & {params["seed"] for params in study_plan(name, blocks(preset)[1])}


def study_plan(name: str, preset: Preset) -> list[dict]:
    return STUDIES[name].plan(preset)


@pytest.mark.parametrize("name", STUDIES)
def test_measured_costs_add_up_to_the_budget(name: str) -> None:
    """90 CPU seconds a quick preset; 1,500 a full one with its fresh block, 4,000 for small_batch."""
    quick, full = Preset(True, QUICK_SEEDS, "mnist5k"), Preset(False, FULL_SEEDS, "mnist5k")
    per_quick, per_full = STUDIES[name].seconds
    assert len(study_plan(name, quick)) * per_quick <= 90
    runs = sum(len(study_plan(name, preset)) for preset in blocks(full))
    assert runs * per_full <= (4000 if name == "small_batch" else 1500)


def test_presets_have_seeds_enough() -> None:
    assert QUICK_SEEDS >= 10
    assert FULL_SEEDS >= 20


@pytest.mark.parametrize("name", STUDIES)
def test_every_margin_has_a_reason_and_every_claim_an_author(name: str) -> None:
    study = STUDIES[name]
    assert all(len(part.because) > 8 for part in study.parts)
    assert len({part.claim for part in study.parts}) == len(study.parts)
    assert all(text.endswith(".") for text in (study.claim, study.who, study.paper, study.doubt, study.advice))
