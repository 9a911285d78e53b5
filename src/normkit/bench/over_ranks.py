"""`normkit bench --ranks`: start so many ranks on this machine, time collectives and norms, condense the slowest."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from .isolated import Isolated
from .rank import WAYS, Rank, Times
from .results import Document, cores, machine
from .sync_figures import Collective, Synchronised, Way
from .timing import Spread, milliseconds, paired

MOST = 64  # ranks
SHARES = {"quick": (2, 64), "full": (2, 224)}  # images per rank, and their height and width


def measure(ranks: int, preset: str, threads: int | None, seconds: float) -> Document:
    """The figures of one number of ranks. threads: per rank; None: the machine's cores shared out.

    Raises:
        Mismatch: normkit and the stand-in of torch's algorithm disagree.
        RuntimeError: a rank has ended.
    """
    batch, image = SHARES[preset]
    share = threads or max(1, cores() // ranks)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        started = [
            stack.enter_context(Isolated(Rank, folder, rank, ranks, share, batch, image, seconds))
            for rank in range(ranks)
        ]
        alone, norms, given, _ = (_of_all(started, name) for name in ("collectives", "norms", "given", "end"))
    figures = Synchronised(
        ranks, batch, image, share, norms=given[0]["normkit"][0] // 2, rounds=len(norms[0]["normkit"]), load=load,
        ways=dict(_ways(norms, given[0])),
    )  # fmt: skip
    return Document(machine(), collectives=tuple(_collectives(ranks, alone)), synchronised=(figures,))


def _of_all(started: Sequence[Isolated], method: str) -> list[Any]:
    """The method's results by rank; all ranks at the same time, since they wait for each other."""
    with ThreadPoolExecutor(len(started)) as pool:
        return list(pool.map(lambda rank: rank.call(method), started))


def _collectives(ranks: int, found: Sequence[dict[tuple[str, int], list[float]]]) -> Iterator[Collective]:
    for kind, size in found[0]:
        slowest = [max(times) for times in zip(*(part[kind, size] for part in found), strict=True)]
        spread = _quartiles(slowest)
        yield Collective(ranks, kind, size, len(slowest), 1e6 * spread.median, 1e6 * spread.low, 1e6 * spread.high)


def _ways(found: Sequence[dict[str, Times]], given: dict[str, list[int]]) -> Iterator[tuple[str, Way]]:
    slowest = {
        name: [_slowest(round_) for round_ in zip(*(part[name] for part in found), strict=True)] for name in WAYS
    }
    ours = [forward + backward for forward, backward in slowest["normkit"]]
    for name, times in slowest.items():
        spread = paired([forward + backward for forward, backward in times], ours)
        forward, backward = (milliseconds(part) for part in zip(*times, strict=True))
        calls, sent = given[name]
        yield name, Way(forward, backward, calls, sent, spread.median, spread.low, spread.high)


def _slowest(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return max(forward for forward, _ in times), max(backward for _, backward in times)


def _quartiles(times: Sequence[float]) -> Spread:
    return paired(times, [1.0] * len(times))
