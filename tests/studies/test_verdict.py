"""The two rules give all three words, from data planted for each, and never a word from too little."""

import json
import math
from collections.abc import Sequence

import pytest
import torch
from scipy.stats import permutation_test

from normkit.studies.rules import Rule, less_than, measured, more_than, times, within
from normkit.studies.verdict import Part, Verdict, combine, holm, judge, p_above


def verdict(rule: Rule, values: Sequence[object]) -> Part:
    """The one part of a study whose seeds gave `values`."""
    return judge([rule], measured([rule], [[value] for value in values])).parts[0]


def above(margin: float) -> Rule:
    return more_than("claim", margin, "unit", "why", lambda runs: runs[0])


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([1.2, 1.1, 1.4, 1.3, 1.2], "supported"),
        ([0.1, 0.2, -0.1, 0.3, 0.2], "not supported"),
        ([0.2, 1.9, 0.4, 1.8, 1.1], "undecided"),
        ([1.5, 1.6, 1.4, 1.5], "undecided"),
        ([1.5, 1.6, 1.4, 1.5, math.nan], "undecided"),
        ([1.5, 1.6, 1.4, 1.5, None], "undecided"),
        ([1.0] * 5, "undecided"),
    ],
    ids=["above", "below", "straddling", "four seeds", "a NaN", "a missing one", "exactly the margin"],
)
def test_more_than_judges_the_mean_against_the_margin(differences: list, word: str) -> None:
    assert verdict(above(1.0), differences).word == word


def test_less_than_is_the_mirror_image() -> None:
    rule = less_than("claim", 2.5, "unit", "why", lambda runs: runs[0])
    part = verdict(rule, [1.0, 2.0, 1.5, 1.2, 1.8])
    assert (part.word, part.rule, part.margin, part.measured) == ("supported", "below", 2.5, pytest.approx(1.5))
    assert part.low is not None
    assert part.high is not None
    assert part.low < 1.5 < part.high
    assert verdict(rule, [3.0, 3.1, 2.9, 3.2, 3.3]).word == "not supported"


def test_times_judges_the_geometric_mean() -> None:
    def rule(margin: float) -> Rule:
        return times("claim", margin, "why", lambda runs: runs[0])

    assert verdict(rule(1.5), [1.0, 100.0, 10.0, 5.0, 20.0]).measured == pytest.approx(10.0)
    assert verdict(rule(3.0), [4.0, 4.1, 4.2, 4.3, 4.4]).word == "supported"
    assert verdict(rule(3.0), [2.0, 2.1, 2.2, 2.3, 2.4]).word == "not supported"
    assert verdict(rule(3.0), [0.0, 4.1, 4.2, 4.3, 4.4]).word == "undecided"


@pytest.mark.parametrize("seeds", [5, 8, 12])
def test_p_is_that_of_the_exact_sign_flip_test(seeds: int) -> None:
    """scipy computes the same by other code; all 2^n patterns, so the two agree to rounding."""
    import numpy as np

    x = torch.randn(4, seeds, dtype=torch.float64, generator=torch.Generator().manual_seed(seeds)) + 0.4
    for row, p in zip(x, p_above(x), strict=True):
        exact = permutation_test(
            (row.numpy(),), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
        )
        assert float(p) == pytest.approx(exact.pvalue, rel=1e-12)


def test_many_seeds_are_judged_by_random_sign_flips() -> None:
    """A p of about 0.1 by 10,000 flips is within four standard errors, 0.012, of the normal distribution's."""
    x = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x - x.mean() + 1.28 * x.square().mean().sqrt() / math.sqrt(40)
    assert float(p_above(x.unsqueeze(0))) == pytest.approx(0.1, abs=0.02)


def test_the_order_of_the_seeds_changes_no_p() -> None:
    x = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rows = torch.stack([x, x.flip(0), x[torch.randperm(10, generator=torch.Generator().manual_seed(2))]])
    assert len(set(p_above(rows).tolist())) == 1


def test_holm_s_values_are_those_of_his_example() -> None:
    """p = 0.01, 0.04, 0.03, 0.005 of four tests: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 raised to 0.06."""
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64).unsqueeze(1)
    assert holm(p).squeeze(1).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(torch.full((3, 1), 0.5, dtype=torch.float64)).squeeze(1).tolist() == [1.0] * 3


def test_a_part_contradicted_at_five_per_cent_alone_is_not_among_many() -> None:
    """Five seeds below the margin give p = 0.031: enough alone, not where four other parts were tried as well."""
    below, other = [0.1, 0.2, -0.1, 0.3, 0.2], [1.2, 1.1, 0.9, 1.3, 0.8]
    rules = [more_than("claim", 1.0, "", "why", lambda runs, i=i: runs[i]) for i in range(5)]
    table = [[b, *[o] * 4] for b, o in zip(below, other, strict=True)]
    assert judge(rules[:1], measured(rules[:1], table)).parts[0].word == "not supported"
    assert judge(rules, measured(rules, table)).parts[0].word == "undecided"


def test_bounded_parts_stay_outside_of_the_correction() -> None:
    rule = above(1.0)
    exact = within("exact", 1.0, "why", lambda runs: [0.5])
    table = [[value] for value in (0.1, 0.2, -0.1, 0.3, 0.2)]
    rules = [rule, *[exact] * 4]
    parts = judge(rules, measured(rules, table)).parts
    assert [part.word for part in parts] == ["not supported", *["supported"] * 4]
    assert [part.p for part in parts[1:]] == [None] * 4


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([1e-9, -9e-7, 0.0], "supported"),
        ([1e-9, 1e-9, 5e-6], "undecided"),
        ([1e-3, 1e-2, 1e-9], "not supported"),
        ([1e-9, 1e-9, math.nan], "undecided"),
        ([math.nan, math.inf, 0.0], "not supported"),
    ],
    ids=["within", "one outside", "most outside", "one NaN", "mostly not finite"],
)
def test_within_judges_every_value_against_the_limit(values: list[float], word: str) -> None:
    assert verdict(within("claim", 1e-6, "why", lambda runs: runs[0]), [values]).word == word


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "undecided"], "undecided"),
        (["undecided", "not supported"], "not supported"),
    ],
    ids=["all hold", "one open", "one contradicted"],
)
def test_a_claim_is_as_good_as_its_weakest_part(words: list, whole: str) -> None:
    made = combine([Part(f"part {i}", word, 1.0, 0.0, 2.0, "above", 0.0, "", "why") for i, word in enumerate(words)])
    assert made.word == whole
    assert all(f"part {i}" in made.sentence for i, word in enumerate(words) if word == whole != "supported")


def test_a_verdict_survives_json() -> None:
    rules = [above(0.0), within("exact", 1.0, "why", lambda runs: [math.inf])]
    made = judge(rules, measured(rules, [[1.0 + i] for i in range(5)]))
    assert Verdict.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))) == made


def test_the_written_rule_is_the_rule() -> None:
    assert above(1500.0).text == "claim: more than 1,500 unit (why)"
    assert times("it grows", 2.0, "twice", lambda runs: 1.0).text == "it grows: more than 2 times (twice)"
    assert within("it is exact", 1e-6, "float64", lambda runs: [0.0]).text == "it is exact: at most 1e-06 (float64)"
