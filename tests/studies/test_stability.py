"""A word is stated where resamples and fresh seeds agree; otherwise the lean is told, with the seeds it would take."""

import json

import pytest
import torch
from torch import Tensor

from normkit.studies.rules import Rule, more_than
from normkit.studies.stability import LADDER, Stability, stated
from normkit.studies.verdict import judge, words

RULES = [more_than("claim", 0.0, "unit", "why", lambda runs: 0.0)]


def seeds(mean: float, count: int, draw: int = 0) -> list[Tensor]:
    """A table of `count` seeds of deviation 1 and exactly this mean."""
    x = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(draw))
    return [(x - x.mean()) / x.std() + mean]


@pytest.mark.parametrize(("mean", "word"), [(2.0, "supported"), (-2.0, "not supported")])
def test_a_clear_effect_is_stated(mean: float, word: str) -> None:
    verdict, stability = stated(RULES, seeds(mean, 20), seeds(mean, 10, 1))
    assert verdict.word == stability.word == word
    assert stability.share == 1.0
    assert (stability.leans, stability.needed) == (None, None)


def test_a_word_that_does_not_return_is_not_stated() -> None:
    """At t = 1.9 of 20 seeds the rule says supported; a resample does so about as often as not."""
    x = seeds(1.9 / 20**0.5, 20)
    assert judge(RULES, x).word == "supported"
    verdict, stability = stated(RULES, x, seeds(1.0, 10, 1))
    assert stability.rule == "supported"
    assert 0.3 < stability.share < 0.8
    assert verdict.word == "undecided"
    assert stability.leans == "supported"
    assert stability.needed in LADDER
    assert "lean towards supported; about" in stability.sentence


def test_fresh_seeds_can_take_a_word_back() -> None:
    verdict, stability = stated(RULES, seeds(2.0, 20), seeds(0.0, 10, 1))
    assert stability.share == 1.0
    assert verdict.word == "undecided"
    assert stability.leans == "supported"
    assert "a block of 10 fresh seeds says undecided" in stability.sentence


def test_no_effect_leans_nowhere_that_any_number_of_seeds_would_decide() -> None:
    _, stability = stated(RULES, seeds(0.0, 20), seeds(0.0, 10, 1))
    assert stability.word == "undecided"
    assert stability.needed is None


def test_resamples_are_judged_by_the_rule_itself() -> None:
    """Each word of a batch of resamples is what `judge` says of that resample alone."""
    two: list[Rule] = [*RULES, more_than("more", 0.2, "unit", "why", lambda runs: 0.0)]
    tables = [seeds(0.5, 12)[0], seeds(0.3, 12, 1)[0]]
    index = torch.randint(12, (40, 12), generator=torch.Generator().manual_seed(3))
    each = [judge(two, [table[row] for table in tables]).word for row in index]
    assert words(two, tables, index) == each
    assert len(set(each)) > 1


def test_stability_survives_json() -> None:
    _, stability = stated(RULES, seeds(0.4, 20), seeds(0.4, 10, 1))
    assert Stability.from_json(json.loads(json.dumps(stability.to_json(), allow_nan=False))) == stability
