"""From measurements to one of three words, by rules that can fail.

* `above` and `below` (rules.py): one number per seed against a margin. The sign-flip permutation test of mean > margin
  at level 0.05 says "supported"; the same test of < margin, its p corrected by Holm (1979) over all parts that have
  one, says "not supported"; anything else is "undecided". All 2^n flips up to 13 seeds, 10,000 random ones beyond. Five
  seeds are the fewest that can support: 1/2^5 = 0.031; to contradict one of k parts takes k/2^n < 0.05, 8 seeds for 8.
  The test is exact for errors that are symmetric about their mean.
* `within`: for exact claims. Every value within the limit is "supported"; a median beyond ten times the limit is
  "not supported"; between the two it is "undecided". Such a part has no p and stays outside of the correction.

A study is supported if all its parts are (an intersection-union test, which needs no correction), and not supported if
one is not (a union of tests, which does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from .rules import Kind, Rule

Word = Literal["supported", "not supported", "undecided"]
LEVEL = 0.05
FEWEST_SEEDS = 5
MOST_EXACT, RANDOM_FLIPS = 13, 10_000
ROWS = 64  # resamples that are tested at once: 64 x 10,000 sums are 5 MB


@dataclass(frozen=True)
class Part:
    """One judged statement: what was measured, its 95 % interval, the margin it had to pass, and the word.

    p: of the test that gave the word (Holm's for "not supported"), None where none was made. because: the margin's
    reason.
    """

    claim: str
    word: Word
    measured: float | None
    low: float | None
    high: float | None
    rule: Kind
    margin: float
    unit: str
    reason: str
    p: float | None = None
    because: str = ""


@dataclass(frozen=True)
class Verdict:
    """The word of a whole study, a sentence that says why, and the parts it was made of."""

    word: Word
    sentence: str
    parts: tuple[Part, ...]

    @property
    def deciding(self) -> Part:
        """The part that the word hangs on: the least certain of all that hold, or the surest of those that do not."""
        parts = [part for part in self.parts if part.word == self.word] or list(self.parts)
        certainty = [math.inf if part.p is None else 1 - part.p for part in parts]
        pick = min if self.word == "supported" else max
        return parts[certainty.index(pick(certainty))]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Verdict:
        return cls(data["word"], data["sentence"], tuple(Part(**part) for part in data["parts"]))


def judge(rules: Sequence[Rule], tables: Sequence[Tensor]) -> Verdict:
    """The verdict over seeds; `tables` as `rules.measured` gives them."""
    rows = [table.unsqueeze(0) for table in tables]
    above, adjusted, held, broken = _tested(rules, rows)
    parts = []
    for i, (rule, table) in enumerate(zip(rules, tables, strict=True)):
        word: Word = "supported" if held[i, 0] else "not supported" if broken[i, 0] else "undecided"
        if rule.kind == "within":
            parts.append(_exact(rule, table, word))
        else:
            parts.append(_tried(rule, table, word, float(above[i, 0]), float(adjusted[i, 0])))
    return combine(parts)


def words(rules: Sequence[Rule], tables: Sequence[Tensor], index: Tensor) -> list[Word]:
    """The word of each resample; index: (resamples, seeds), which seeds it is made of."""
    _, _, held, broken = _tested(rules, [table[index] for table in tables])
    whole = zip(held.all(0).tolist(), broken.any(0).tolist(), strict=True)
    return ["not supported" if no else "supported" if yes else "undecided" for yes, no in whole]


def combine(parts: Sequence[Part]) -> Verdict:
    """All supported: supported. One not supported: not supported. Else undecided."""
    found = [part.word for part in parts]
    word: Word = "not supported" if "not supported" in found else "undecided" if "undecided" in found else "supported"
    return Verdict(word, _sentence(word, parts), tuple(parts))


def p_above(x: Tensor) -> Tensor:
    """x: (R, n). The p of the sign-flip test of mean > 0 in each row; 1 where a row is too short or not finite."""
    n = x.shape[1]
    if n < FEWEST_SEEDS:
        return torch.ones(len(x), dtype=torch.float64)
    signs, found = _signs(n), []
    for rows in x.split(ROWS):
        total = rows.sum(1, keepdim=True) - 1e-12 * rows.abs().sum(1, keepdim=True)  # equal sums tie whatever the order
        found.append((rows @ signs.T >= total).double().mean(1))
    return torch.where(x.isfinite().all(1), torch.cat(found), 1.0)


def holm(p: Tensor) -> Tensor:
    """p: (k, R), k tests of each of R families. Holm's adjusted values: (k - rank) p, never falling with the rank."""
    k = len(p)
    ranked, order = p.sort(0)
    factors = torch.arange(k, 0, -1, dtype=p.dtype).unsqueeze(1)
    raised = (ranked * factors).cummax(0).values.clamp(max=1.0)
    return torch.empty_like(p).scatter_(0, order, raised)


def _tested(rules: Sequence[Rule], rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(p, Holm's p of the opposite, held, broken), each (rules, R), of tables (R, seeds) or (R, seeds, values)."""
    shape = len(rules), len(rows[0])
    above, below = torch.ones(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    held, broken = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    tried = [i for i, rule in enumerate(rules) if rule.kind != "within"]
    for i, (rule, table) in enumerate(zip(rules, rows, strict=True)):
        if rule.kind == "within":
            sizes = table.abs().nan_to_num(nan=math.inf, posinf=math.inf).flatten(1)
            held[i] = sizes.amax(1) <= rule.bound
            broken[i] = sizes.median(1).values > 10 * rule.bound
        else:
            apart = table - rule.bound if rule.kind == "above" else rule.bound - table
            above[i], below[i] = p_above(apart), p_above(-apart)
    adjusted = below.clone()
    adjusted[tried] = holm(below[tried])
    for i in tried:
        held[i], broken[i] = above[i] < LEVEL, adjusted[i] < LEVEL
    return above, adjusted, held, broken


def _tried(rule: Rule, table: Tensor, word: Word, above: float, adjusted: float) -> Part:
    if len(table) < FEWEST_SEEDS or not table.isfinite().all():
        reason = f"{int(table.isfinite().sum())} of {len(table)} seeds finite, {FEWEST_SEEDS} needed"
        return _part(rule, word, None, None, None, reason, None)
    p = adjusted if word == "not supported" else above
    reason = f"{'p < 0.001' if p < 0.001 else f'p = {p:.3f}'} over {len(table)} seeds"
    low, high = interval(table.tolist())
    part = _part(rule, word, float(table.mean()), low, high, reason, p)
    if word == "not supported":
        part = replace(part, reason=part.reason + " for the opposite")
    return part


def _exact(rule: Rule, table: Tensor, word: Word) -> Part:
    worst = float(table.abs().nan_to_num(nan=math.inf).max())
    return _part(rule, word, worst if math.isfinite(worst) else None, None, None, f"worst of {table.numel()} values")


def _part(rule: Rule, word: Word, mean: Any, low: Any, high: Any, reason: str, p: float | None = None) -> Part:
    def shown(value: float | None) -> float | None:
        if value is None or not rule.is_ratio:
            return value
        return None if value > 700 else math.exp(value)  # e^709 is the largest double

    return Part(rule.claim, word, shown(mean), shown(low), shown(high), rule.kind, rule.margin, rule.unit, reason, p,
                rule.because)  # fmt: skip


def _sentence(word: Word, parts: Sequence[Part]) -> str:
    if word == "supported":
        return f"All {len(parts)} parts of the claim hold in these runs."
    held = sum(part.word == "supported" for part in parts)
    named = "; ".join(f"“{part.claim}” ({part.reason})" for part in parts if part.word == word)
    what = "These runs contradict" if word == "not supported" else "These runs cannot settle"
    return f"{held} of {len(parts)} parts of the claim hold. {what} {named}."


@lru_cache(maxsize=64)
def _signs(n: int) -> Tensor:
    """(flips, n) of ±1, the pattern that flips nothing among them."""
    if n <= MOST_EXACT:
        bits = torch.arange(2**n).unsqueeze(1) >> torch.arange(n) & 1
    else:
        bits = torch.randint(2, (RANDOM_FLIPS, n), generator=torch.Generator().manual_seed(n))
        bits[0] = 0
    return 1.0 - 2.0 * bits.double()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, 95 %; shown beside the test, never what decides."""
    held = torch.as_tensor(values, dtype=torch.float64)
    index = torch.randint(len(held), (4000, len(held)), generator=torch.Generator().manual_seed(0))
    low, high = held[index].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
