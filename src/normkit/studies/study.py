"""What a study is: data and four functions, one file each, no base class.

plan(preset) lists the runs as JSON-able parameters; run(params) is pure given those parameters (same numbers on every
machine thread count: workers use one thread); judge(runs) applies the written rule; plot(runs) draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .verdict import Verdict

Params = dict[str, Any]  # JSON scalars and lists only: it is the key under which a finished run is found again
Result = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """How much to run: `quick` is sized for the demo; `data` names the data set or a user's file.

    The seeds are first_seed, first_seed + 1, ..., `seeds` of them or what a study needs at least.
    """

    quick: bool
    seeds: int
    data: str
    first_seed: int = 0

    @property
    def name(self) -> str:
        return "quick" if self.quick else "full"

    def seed_range(self, least: int = 0) -> range:
        """The seeds of a plan that takes at least so many."""
        return range(self.first_seed, self.first_seed + max(least, self.seeds))


@dataclass(frozen=True)
class Run:
    """One finished run: what was asked, what came out, how long it took."""

    params: Params
    result: Result
    seconds: float


@dataclass(frozen=True)
class Plot:
    """One picture: `description` is read out by screen readers, `svg` uses the page's colours."""

    title: str
    description: str
    svg: str


@dataclass(frozen=True)
class Study:
    """A claim about training, the experiment that tests it, and the rule of its verdict, in words and in code.

    seconds: CPU seconds of a run on mnist5k, (quick, full), as measured once on a machine with AVX2: for estimates.
    """

    name: str
    title: str
    claim: str
    experiment: str
    rule: str
    papers: tuple[str, ...]
    seconds: tuple[float, float]
    plan: Callable[[Preset], list[Params]]
    run: Callable[[Params], Result]
    judge: Callable[[Sequence[Run]], Verdict]
    plot: Callable[[Sequence[Run]], list[Plot]]


def by_seed(runs: Sequence[Run], **fixed: Any) -> dict[int, Run]:
    """The runs whose parameters hold all of `fixed`, keyed by seed; two of one seed would be a bug of the plan."""
    chosen = [run for run in runs if all(run.params.get(key) == value for key, value in fixed.items())]
    keyed = {run.params["seed"]: run for run in chosen}
    assert len(keyed) == len(chosen), f"{fixed} does not name one run a seed"
    return keyed


def seeds_of(runs: Sequence[Run]) -> list[int]:
    return sorted({run.params["seed"] for run in runs})
