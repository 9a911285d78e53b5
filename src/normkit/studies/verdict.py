"""From measurements to one of three words, by rules that can fail.

A study claims several things at once; each is a `Part`, judged by one of two rules:

* `paired` (`paired_below` its mirror image, `paired_ratio` the same on logarithms): differences over seeds against a
  margin fixed in the study's code. The exact sign-flip permutation test of mean(difference) > margin at level 0.05 says
  "supported", the same test of < margin says "not supported", anything else is "undecided". Five seeds are the fewest
  that can decide: 1/2^5 = 0.031.
* `bounded`: for exact claims. Every value within the limit is "supported"; a median beyond ten times the limit is
  "not supported"; between the two it is "undecided".

A study is supported only if all its parts are, so no correction for several tests is needed (an intersection-union
test), and it is not supported as soon as one part is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Word = Literal["supported", "not supported", "undecided"]
LEVEL = 0.05
FEWEST_SEEDS = 5


@dataclass(frozen=True)
class Part:
    """One judged statement: what was measured, its 95 % interval, the margin it had to pass, and the word.

    p: of the test that gave the word, None where none was made.
    """

    claim: str
    word: Word
    measured: float | None
    low: float | None
    high: float | None
    rule: Literal["above", "below", "within"]
    margin: float
    unit: str
    reason: str
    p: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The word of a whole study, a sentence that says why, and the parts it was made of."""

    word: Word
    sentence: str
    parts: tuple[Part, ...]

    @property
    def deciding(self) -> Part:
        """The part that the word hangs on: the least certain of all that hold, or the surest of those that do not."""
        parts = [part for part in self.parts if part.word == self.word]
        certainty = [math.inf if part.p is None else 1 - part.p for part in parts]
        pick = min if self.word == "supported" else max
        return parts[certainty.index(pick(certainty))]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Verdict:
        return cls(data["word"], data["sentence"], tuple(Part(**part) for part in data["parts"]))


def paired(claim: str, differences: Sequence[float], margin: float, unit: str) -> Part:
    """Judge `mean(differences) > margin` over seeds; `differences` holds one number a seed."""
    if len(differences) < FEWEST_SEEDS or not all(math.isfinite(d) for d in differences):
        reason = f"{sum(map(math.isfinite, differences))} of {len(differences)} seeds finite, {FEWEST_SEEDS} needed"
        return Part(claim, "undecided", None, None, None, "above", margin, unit, reason)
    above, below = (_sign_flip(differences, margin, side) for side in ("greater", "less"))
    word: Word = "supported" if above < LEVEL else "not supported" if below < LEVEL else "undecided"
    p = below if word == "not supported" else above
    reason = f"{'p < 0.001' if p < 0.001 else f'p = {p:.3f}'} over {len(differences)} seeds"
    if word == "not supported":
        reason += " for the opposite"
    low, high = _interval(differences)
    return Part(claim, word, sum(differences) / len(differences), low, high, "above", margin, unit, reason, p)


def paired_below(claim: str, values: Sequence[float], margin: float, unit: str) -> Part:
    """Judge `mean(values) < margin` over seeds."""
    part = paired(claim, [-value for value in values], -margin, unit)
    measured, low, high = (None if v is None else -v for v in (part.measured, part.high, part.low))
    return replace(part, rule="below", margin=margin, measured=measured, low=low, high=high)


def paired_ratio(claim: str, ratios: Sequence[float], margin: float) -> Part:
    """Judge the geometric mean of positive ratios against a margin, both given and shown as "times"."""
    logs = [math.log(ratio) if ratio > 0 else math.nan for ratio in ratios]
    part = paired(claim, logs, math.log(margin), "times")
    return replace(part, margin=margin, measured=_exp(part.measured), low=_exp(part.low), high=_exp(part.high))


def bounded(claim: str, values: Sequence[float], limit: float, unit: str = "") -> Part:
    """Judge an exact claim: every one of `values` must be at most `limit` in size."""
    sizes = sorted(abs(value) if math.isfinite(value) else math.inf for value in values)
    worst, median = sizes[-1], sizes[len(sizes) // 2]
    word: Word = "supported" if worst <= limit else "not supported" if median > 10 * limit else "undecided"
    measured = worst if math.isfinite(worst) else None
    return Part(claim, word, measured, None, None, "within", limit, unit, f"the worst of {len(sizes)} values")


def combine(parts: Sequence[Part]) -> Verdict:
    """All supported: supported. One not supported: not supported. Else undecided."""
    words = [part.word for part in parts]
    word: Word = "not supported" if "not supported" in words else "undecided" if "undecided" in words else "supported"
    return Verdict(word, _sentence(word, parts), tuple(parts))


def _sentence(word: Word, parts: Sequence[Part]) -> str:
    if word == "supported":
        return f"All {len(parts)} parts of the claim hold in these runs."
    held = sum(part.word == "supported" for part in parts)
    named = "; ".join(f"“{part.claim}” ({part.reason})" for part in parts if part.word == word)
    what = "These runs contradict" if word == "not supported" else "These runs cannot settle"
    return f"{held} of {len(parts)} parts of the claim hold. {what} {named}."


def _exp(value: float | None) -> float | None:
    return None if value is None or value > 700 else math.exp(value)  # e^709 is the largest double


def _sign_flip(differences: Sequence[float], margin: float, side: str) -> float:
    """p of the exact one-sample sign-flip test (all 2^n sign patterns up to n = 13, else 9,999 random ones)."""
    import numpy as np
    from scipy.stats import permutation_test  # type: ignore[import-untyped]  # scipy ships no types

    centred = np.asarray(differences, dtype=float) - margin
    result = permutation_test((centred,), np.mean, permutation_type="samples", alternative=side, rng=0)
    return float(result.pvalue)


def _interval(differences: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, 95 %; shown beside the test, never what decides."""
    import numpy as np

    values = np.asarray(differences, dtype=float)
    draws = np.random.default_rng(0).choice(values, size=(4000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)
