"""Figures of several ranks: a collective alone, and a step of all norms of ResNet-50 by each way to normalize."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Collective:
    """One collective alone: microseconds of the slowest rank, median and quartiles of the rounds.

    kind: "all_gather" or "all_reduce"; bytes: what each rank gives.
    """

    ranks: int
    kind: str
    bytes: int
    rounds: int
    us: float
    low: float
    high: float

    @property
    def key(self) -> tuple[int, str, int]:
        return self.ranks, self.kind, self.bytes


@dataclass(frozen=True)
class Way:
    """One way to normalize: milliseconds of a step of all norms, as the slowest rank has them.

    collectives, bytes: of one step, what each rank gives; ratio, low, high: its time over normkit's, median of the
    paired rounds with quartiles.
    """

    forward_ms: float
    backward_ms: float
    collectives: int
    bytes: int
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Synchronised:
    """ResNet-50's norms on several ranks. batch: images per rank; image: their height and width; threads: per rank.

    load: the machine's load average before the ranks began, what other work it had.
    """

    ranks: int
    batch: int
    image: int
    threads: int
    norms: int
    rounds: int
    load: float = 0.0
    ways: dict[str, Way] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int, int, int]:
        return self.ranks, self.batch, self.image, self.threads
