"""What a study is: data, three functions and a rule for each part of its claim, one file each, no base class.

plan(preset) lists the runs as JSON-able parameters, each with its `seed`; run(params) is pure given those parameters
(same numbers on every machine thread count: workers use one thread); each part's rule takes the runs of one seed;
plot(runs) draws. A seed draws the split of the data, the start and the order of the batches, the same for all arms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .rules import Rule, measured
from .verdict import Verdict, judge

if TYPE_CHECKING:
    from torch import Tensor

Params = dict[str, Any]  # JSON scalars and lists only: it is the key under which a finished run is found again
Result = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """How much to run: `quick` is sized for the demo; `data` names the data set or a user's file.

    The seeds are first_seed, first_seed + 1, ..., `seeds` of them.
    """

    quick: bool
    seeds: int
    data: str
    first_seed: int = 0

    @property
    def name(self) -> str:
        return "quick" if self.quick else "full"

    def seed_range(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    def block(self, first_seed: int, seeds: int) -> Preset:
        """The same with other seeds."""
        return replace(self, first_seed=first_seed, seeds=seeds)


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
    """A claim about training, the experiment that tests it, the rules of its verdict, and what to do with it.

    who: who made the claim; paper: what their figure shows, to be held beside ours; doubt: what would change the
    verdict; advice: what to do; changes: rules that were changed after results had been seen, and why;
    seconds: CPU seconds of a run on mnist5k, (quick, full), as measured once on a machine with AVX2: for estimates.
    """

    name: str
    title: str
    claim: str
    who: str
    experiment: str
    parts: tuple[Rule, ...]
    paper: str
    doubt: str
    advice: str
    papers: tuple[str, ...]
    seconds: tuple[float, float]
    plan: Callable[[Preset], list[Params]]
    run: Callable[[Params], Result]
    plot: Callable[[Sequence[Run]], list[Plot]]
    changes: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        """The rule of the verdict in words: the parts themselves."""
        return "; ".join(part.text for part in self.parts)

    def measure(self, runs: Sequence[Run]) -> list[Tensor]:
        """One table per part, a row per seed."""
        return measured(self.parts, [[r for r in runs if r.params["seed"] == seed] for seed in seeds_of(runs)])

    def judge(self, runs: Sequence[Run]) -> Verdict:
        return judge(self.parts, self.measure(runs))


def by_seed(runs: Sequence[Run], **fixed: Any) -> dict[int, Run]:
    """The runs whose parameters hold all of `fixed`, keyed by seed; two of one seed would be a bug of the plan."""
    chosen = [run for run in runs if all(run.params.get(key) == value for key, value in fixed.items())]
    keyed = {run.params["seed"]: run for run in chosen}
    assert len(keyed) == len(chosen), f"{fixed} does not name one run per seed"
    return keyed


def only(runs: Sequence[Run], **fixed: Any) -> Result:
    """The result of the one run of a seed whose parameters hold all of `fixed`."""
    (run,) = by_seed(runs, **fixed).values()
    return run.result


def seeds_of(runs: Sequence[Run]) -> list[int]:
    return sorted({run.params["seed"] for run in runs})
