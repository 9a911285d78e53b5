"""How much a verdict is worth: how often its word comes back, from these runs resampled and from fresh ones.

A word is stated only if the rule gives it in 95 % of 1,000 resamples of the seeds (drawn with replacement and judged
anew, without training) and on a block of seeds that were never looked at. Otherwise "undecided" is stated, with the
word that it leans to and about how many seeds would decide. Resampling is optimistic: 20 seeds hold no more surprises
than the 20 held; the fresh block is what guards against that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .rules import Rule
from .verdict import Verdict, Word, judge, words

RESAMPLES = 1000
ENOUGH = 0.95
FRESH_SEEDS = 10
APART = 10_000  # the fresh block begins so many seeds after the judged ones
LADDER = (20, 30, 40, 60, 80, 120, 160, 240, 320)  # seeds that are tried for "how many would decide"
TRIES = 200


@dataclass(frozen=True)
class Stability:
    """rule: the word of the rule alone; share: of the resamples that give it; fresh: the fresh block's own verdict.

    leans: the word that undecided runs lean to, None for neither; needed: about how many seeds would give it with 95 %,
    None where 320 would not.
    """

    rule: Word
    share: float
    fresh: Verdict
    leans: Word | None
    needed: int | None

    @property
    def word(self) -> Word:
        """The word that is stated."""
        sure = self.share >= ENOUGH and self.fresh.word == self.rule
        return self.rule if sure else "undecided"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "word": self.word}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stability:
        return cls(data["rule"], data["share"], Verdict.from_json(data["fresh"]), data["leans"], data["needed"])

    @property
    def sentence(self) -> str:
        """What was found about the word, and what it leans to where it is open."""
        text = f"The rule says {self.rule}; {self.share:.1%} of {RESAMPLES:,} resamples of the seeds agree, and a "
        text += f"block of {FRESH_SEEDS} fresh seeds says {self.fresh.word}"
        if self.word != "undecided":
            return text + "."
        if self.leans is None:
            return text + ". The runs lean neither way."
        enough = f"about {self.needed} seeds would decide" if self.needed else f"{LADDER[-1]} seeds would not decide"
        return f"{text}. The runs lean towards {self.leans}; {enough}."


def stated(rules: Sequence[Rule], tables: Sequence[Tensor], fresh: Sequence[Tensor]) -> tuple[Verdict, Stability]:
    """The verdict as it is stated, and what it rests on; tables of the judged seeds and of the fresh block."""
    verdict = judge(rules, tables)
    found = Counter(_resampled(rules, tables, len(tables[0]), RESAMPLES))
    share, other = found[verdict.word] / RESAMPLES, judge(rules, fresh)
    stability = Stability(verdict.word, share, other, None, None)
    if stability.word == "undecided":
        pooled = [torch.cat(pair) for pair in zip(tables, fresh, strict=True)]
        stability = replace(stability, **_outlook(rules, pooled))
    return replace(verdict, word=stability.word), stability


def _outlook(rules: Sequence[Rule], pooled: Sequence[Tensor]) -> dict[str, Any]:
    """Which way all runs together lean, and the fewest seeds that would say so in 95 % of resamples."""
    leans: Word | None = None
    for n in LADDER:
        found = Counter(_resampled(rules, pooled, n, TRIES))
        yes, no = found["supported"], found["not supported"]
        leans = None if yes == no else "supported" if yes > no else "not supported"
        if leans and n > len(pooled[0]) - FRESH_SEEDS and found[leans] >= ENOUGH * TRIES:
            return {"leans": leans, "needed": n}
    return {"leans": leans, "needed": None}


def _resampled(rules: Sequence[Rule], tables: Sequence[Tensor], seeds: int, draws: int) -> list[Word]:
    """The words of `draws` resamples of `seeds` seeds each."""
    generator = torch.Generator().manual_seed(0)
    return words(rules, tables, torch.randint(len(tables[0]), (draws, seeds), generator=generator))
