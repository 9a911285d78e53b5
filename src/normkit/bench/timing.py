"""The one timing engine: rounds of paired calls in random order, and what may be said about them.

Rules: every contender is called once a round, so a disturbance of the machine hits a pair and not a side; the order is
drawn anew each round (a fixed one biases by up to 30 %); rounds go through the sets of inputs; the garbage collector
waits. A figure is a median of the rounds' ratios, never a ratio of medians; a suite's is their geometric mean.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

FEWEST, MOST = 5, 300  # rounds; below five a quartile says nothing
WARM_UP = 2  # rounds that are thrown away: first touches, lazy initialisation


class Seconds(NamedTuple):
    """One call: its forward and its backward (0 where there is none)."""

    forward: float
    backward: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward


class Spread(NamedTuple):
    """The quartiles of the rounds: the figure is `median`, half of the rounds lie between `low` and `high`."""

    low: float
    median: float
    high: float


def interleave(
    calls: Mapping[str, Callable[[int], Seconds]],
    seconds: float,
    fewest: int = FEWEST,
    most: int = MOST,
    seed: int = 0,
    warm_up: int = WARM_UP,
) -> dict[str, list[Seconds]]:
    """Time all calls round by round for about `seconds`; call i of each list belongs to round i.

    A call is given the number of the round, by which it picks its inputs, and returns its own times.
    """
    names, draw = list(calls), random.Random(seed)
    taken: dict[str, list[Seconds]] = {name: [] for name in names}
    with _no_garbage_collection():
        for index in range(warm_up):
            for name in names:
                calls[name](index)
        end, index = time.perf_counter() + seconds, 0
        while index < fewest or (index < most and time.perf_counter() < end):
            draw.shuffle(names)
            for name in names:
                taken[name].append(calls[name](index))
            index += 1
    return taken


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """The quartiles of the ratios of the same rounds."""
    low, median, high = statistics.quantiles(
        [above / below for above, below in zip(numerator, denominator, strict=True)], n=4, method="inclusive"
    )
    return Spread(low, median, high)


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean that treats twice as fast and half as fast alike."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


def milliseconds(times: Sequence[float]) -> float:
    """The median, for people; ratios are never made of it."""
    return 1e3 * statistics.median(times)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
