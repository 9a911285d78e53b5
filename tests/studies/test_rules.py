"""Each study's own rule can support its claim, contradict it, and leave it open."""

import pytest

from normkit.studies import STUDIES

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


@pytest.mark.parametrize("name", STUDIES)
def test_a_plan_repeats_itself_and_names_each_run_once(name: str) -> None:
    from normkit.studies import Preset

    preset = Preset(quick=True, seeds=3, data="digits")
    plan = STUDIES[name].plan(preset)
    assert plan == STUDIES[name].plan(preset)
    assert len({repr(sorted(params.items())) for params in plan}) == len(plan)
    assert {params["seed"] for params in plan} >= {0, 1, 2}
