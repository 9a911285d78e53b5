"""The time of a collective as latency and bandwidth: fitted to what was measured, and read off for published networks.

    time = start + steps * latency + bytes on the wire / bandwidth

for a ring, where each rank hands on to its neighbour, and for a tree, whose depth is the logarithm of the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from normkit.bench.sync_figures import Collective

ALGORITHMS = ("ring", "tree")


def steps(kind: str, algorithm: str, ranks: int) -> int:
    """Messages one after the other; an all_reduce goes up and down."""
    one_way = ranks - 1 if algorithm == "ring" else math.ceil(math.log2(ranks))
    return one_way if kind == "all_gather" else 2 * one_way


def wire(kind: str, algorithm: str, ranks: int, given: float) -> float:
    """Bytes that a rank sends: all_gather: `given` of every other; all_reduce: all of its own up and down."""
    if kind == "all_gather":
        return (ranks - 1) * given
    return 2 * given * ((ranks - 1) / ranks if algorithm == "ring" else 1)


@dataclass(frozen=True)
class Fit:
    """start, latency: microseconds; per_byte: microseconds a byte, 0 where the sizes did not show."""

    kind: str
    algorithm: str
    start: float
    latency: float
    per_byte: float

    def time(self, ranks: int, given: float) -> float:
        """Microseconds."""
        return (
            self.start
            + self.latency * steps(self.kind, self.algorithm, ranks)
            + self.per_byte * wire(self.kind, self.algorithm, ranks, given)
        )

    def residuals(self, points: Sequence[Collective]) -> list[float]:
        """The model over what was measured, less one, of each point of this kind."""
        return [self.time(p.ranks, p.bytes) / p.us - 1 for p in points if p.kind == self.kind]


def fit(points: Sequence[Collective], kind: str, algorithm: str) -> Fit:
    """Least squares of the relative error under coefficients that are at least 0: the best of all sets of them."""
    chosen = [point for point in points if point.kind == kind]
    measured = torch.tensor([point.us for point in chosen], dtype=torch.float64)
    rows = [[1.0, float(steps(kind, algorithm, p.ranks)), wire(kind, algorithm, p.ranks, p.bytes)] for p in chosen]
    table = torch.tensor(rows, dtype=torch.float64) / measured.unsqueeze(1)
    best = min(_solutions(table), key=lambda found: float((table @ found - 1).square().sum()))
    return Fit(kind, algorithm, *best.tolist())


def _solutions(table: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of table @ x = 1, by every set of its columns, where no coefficient is negative."""
    wanted = torch.ones(len(table), 1, dtype=torch.float64)
    scale = table.abs().amax(0)
    for count in (1, 2, 3):
        for columns in combinations(range(3), count):
            part = (table / scale)[:, columns]
            solved = torch.linalg.lstsq(part, wanted, driver="gelsd").solution.squeeze(1)
            if (solved >= 0).all():
                whole = torch.zeros(3, dtype=torch.float64)
                whole[list(columns)] = solved
                yield whole / scale


@dataclass(frozen=True)
class Network:
    """Published figures. latency within a node and between nodes: microseconds a step, (ring, tree); bandwidth: GB/s.

    share: of the bandwidth that a low-latency protocol reaches, (ring, tree); apart: how much longer a step within a
    node takes where there are several.
    """

    name: str
    node: int  # ranks
    start: tuple[float, float]
    within: tuple[float, float]
    between: tuple[float, float]
    bandwidth_within: float
    bandwidth_between: float
    share: tuple[float, float] = (1 / 4, 1 / 3.8)
    apart: float = 1.8

    def time(self, kind: str, algorithm: str, ranks: int, given: float) -> float:
        """Microseconds, by NCCL's own formulas. A tree is for all_reduce alone."""
        which = ALGORITHMS.index(algorithm)
        nodes = max(1, -(-ranks // self.node))
        within = self.within[which] * (self.apart if nodes > 1 else 1)
        if algorithm == "ring":
            crossing = steps(kind, "ring", nodes) if nodes > 1 else 0
            waited = (steps(kind, "ring", ranks) - crossing) * within + crossing * self.between[which]
        else:
            waited = 2 * ((min(ranks, self.node) - 1) * within + math.log2(nodes) * self.between[which])
        bandwidth = self.bandwidth_within if nodes == 1 else self.bandwidth_between
        sent = wire(kind, algorithm, ranks, given) / (1e3 * bandwidth * self.share[which])
        return self.start[which] + waited + sent

    def best(self, kind: str, ranks: int, given: float) -> float:
        """By the faster algorithm that there is for the kind."""
        algorithms = ALGORITHMS if kind == "all_reduce" else ALGORITHMS[:1]
        return min(self.time(kind, algorithm, ranks, given) for algorithm in algorithms)


# NVIDIA NCCL, src/graph/tuning.cc: baseLat, hwLat and the share of the bandwidth of protocol LL, which it takes for
# messages of this size; NVIDIA H100: NVLink 4 with 900 GB/s, half of it each way; 400 Gb/s Ethernet for each GPU.
_START, _NVLINK = (3.6, 4.4), (0.47, 0.52)
NETWORKS = (
    Network("NVLink", 8, _START, _NVLINK, _NVLINK, 450.0, 450.0, apart=1.0),
    Network("Ethernet between nodes of 8", 8, _START, _NVLINK, (2.7, 5.0), 450.0, 50.0),
)
