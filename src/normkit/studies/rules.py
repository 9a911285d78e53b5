"""The parts of a claim as rules: what is measured once per seed, the margin it is held against, and why that margin.

`of` takes the runs of one seed and gives one number (`more_than`, `less_than`, `times`) or the numbers of an exact
claim (`within`). A margin is the smallest effect of interest: what a reader would act on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["above", "below", "within"]
Measure = Callable[[Sequence[Any]], "float | Sequence[float]"]
SIGNS = {"above": "more than", "below": "less than", "within": "at most"}


@dataclass(frozen=True)
class Rule:
    """One statement that can fail; `is_ratio`: judged on logarithms, shown as "times"."""

    claim: str
    kind: Kind
    margin: float
    unit: str
    because: str
    of: Measure
    is_ratio: bool = False

    @property
    def text(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.claim}: {SIGNS[self.kind]} {self.margin:,g}{unit} ({self.because})"

    @property
    def bound(self) -> float:
        """The margin on the scale on which it is judged."""
        return math.log(self.margin) if self.is_ratio else self.margin


def more_than(claim: str, margin: float, unit: str, because: str, of: Measure) -> Rule:
    """The mean over seeds is above the margin."""
    return Rule(claim, "above", margin, unit, because, of)


def less_than(claim: str, margin: float, unit: str, because: str, of: Measure) -> Rule:
    """The mean over seeds is below the margin."""
    return Rule(claim, "below", margin, unit, because, of)


def times(claim: str, margin: float, because: str, of: Measure) -> Rule:
    """The geometric mean over seeds of a positive ratio is above the margin."""
    return Rule(claim, "above", margin, "times", because, of, is_ratio=True)


def within(claim: str, limit: float, because: str, of: Measure, unit: str = "") -> Rule:
    """Every value of every seed is at most `limit` in size; for what is exact."""
    return Rule(claim, "within", limit, unit, because, of)


def measured(rules: Sequence[Rule], seeds: Sequence[Sequence[Any]]) -> list[Tensor]:
    """One table per rule, (seeds,) or (seeds, values), float64; `seeds` holds the runs of each. NaN: not measured."""
    import torch

    def number(rule: Rule, value: float | None) -> float:
        if value is None:
            return math.nan
        if rule.is_ratio:
            return math.log(value) if value > 0 else math.nan
        return float(value)

    tables = []
    for rule in rules:
        rows = []
        for runs in seeds:
            got = rule.of(runs)
            rows.append([number(rule, value) for value in got] if rule.kind == "within" else number(rule, got))  # type: ignore[union-attr, arg-type]  # the kind says which
        tables.append(torch.tensor(rows, dtype=torch.float64))
    return tables
