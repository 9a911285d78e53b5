"""The two rules give all three words, from data planted for each, and never a word from too little."""

import json
import math

import pytest

from normkit.studies.verdict import Part, Verdict, bounded, combine, paired, paired_below, paired_ratio


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([1.2, 1.1, 1.4, 1.3, 1.2], "supported"),
        ([0.1, 0.2, -0.1, 0.3, 0.2], "not supported"),
        ([0.2, 1.9, 0.4, 1.8, 1.1], "undecided"),
        ([1.5, 1.6, 1.4, 1.5], "undecided"),
        ([1.5, 1.6, 1.4, 1.5, math.nan], "undecided"),
        ([], "undecided"),
        ([1.0] * 5, "undecided"),
    ],
    ids=["above", "below", "straddling", "four seeds", "a NaN", "nothing", "exactly the margin"],
)
def test_paired_judges_the_mean_against_the_margin(differences: list[float], word: str) -> None:
    assert paired("claim", differences, 1.0, "unit").word == word


def test_paired_below_is_the_mirror_image() -> None:
    part = paired_below("claim", [1.0, 2.0, 1.5, 1.2, 1.8], 2.5, "unit")
    assert (part.word, part.margin, part.measured) == ("supported", 2.5, pytest.approx(1.5))
    assert part.low is not None
    assert part.high is not None
    assert part.low < 1.5 < part.high
    assert paired_below("claim", [3.0, 3.1, 2.9, 3.2, 3.3], 2.5, "unit").word == "not supported"


def test_paired_ratio_judges_the_geometric_mean() -> None:
    part = paired_ratio("claim", [1.0, 100.0, 10.0, 5.0, 20.0], 1.5)
    assert part.measured == pytest.approx(10.0)
    assert paired_ratio("claim", [4.0, 4.1, 4.2, 4.3, 4.4], 3.0).word == "supported"
    assert paired_ratio("claim", [2.0, 2.1, 2.2, 2.3, 2.4], 3.0).word == "not supported"
    assert paired_ratio("claim", [0.0, 4.1, 4.2, 4.3, 4.4], 3.0).word == "undecided"


def test_five_equal_signs_give_the_exact_p_of_a_sign_flip_test() -> None:
    assert "p = 0.031" in paired("claim", [1.0, 2.0, 3.0, 4.0, 5.0], 0.0, "").reason  # 1 / 2^5


def test_many_seeds_are_judged_by_random_sign_flips() -> None:
    assert paired("claim", [0.5 + 0.01 * i for i in range(40)], 0.0, "").word == "supported"


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
def test_bounded_judges_every_value_against_the_limit(values: list[float], word: str) -> None:
    assert bounded("claim", values, 1e-6).word == word


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
    verdict = combine([Part(f"part {i}", word, 1.0, 0.0, 2.0, "above", 0.0, "", "why") for i, word in enumerate(words)])
    assert verdict.word == whole
    assert all(f"part {i}" in verdict.sentence for i, word in enumerate(words) if word == whole != "supported")


def test_a_verdict_survives_json() -> None:
    verdict = combine([paired("claim", [1.0] * 5, 0.0, "unit"), bounded("exact", [math.inf], 1.0)])
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False))) == verdict
