"""The timing engine: every contender once a round, a new order each time, medians of paired ratios."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from normkit.bench.timing import Seconds, geometric_mean, interleave, paired


def recorder(log: list[tuple[str, int]], name: str, seconds: float) -> Callable[..., Any]:
    def call(index: int) -> Seconds:
        log.append((name, index))
        return Seconds(seconds)

    return call


def test_each_contender_is_called_once_a_round_with_the_round_s_inputs() -> None:
    log: list[tuple[str, int]] = []
    times = interleave({name: recorder(log, name, 1.0) for name in "abc"}, 0.0, fewest=7, warm_up=0)
    rounds = [log[i : i + 3] for i in range(0, len(log), 3)]
    assert [sorted(called) for called in rounds] == [[(name, index) for name in "abc"] for index in range(7)]
    assert {name: len(taken) for name, taken in times.items()} == {"a": 7, "b": 7, "c": 7}


def test_the_order_is_drawn_anew() -> None:
    log: list[tuple[str, int]] = []
    interleave({name: recorder(log, name, 1.0) for name in "ab"}, 0.0, fewest=40, warm_up=0)
    first = [name for name, _ in log[::2]].count("a")
    assert 10 <= first <= 30  # of 40 fair draws; outside with probability 0.002, and the seed is fixed


def test_warm_up_rounds_are_thrown_away() -> None:
    log: list[tuple[str, int]] = []
    times = interleave({"a": recorder(log, "a", 1.0)}, 0.0, fewest=5, warm_up=2)
    assert (len(log), len(times["a"])) == (7, 5)


def test_rounds_end_at_most_even_within_the_time() -> None:
    assert len(interleave({"a": lambda index: Seconds(1.0)}, 60.0, fewest=5, most=9)["a"]) == 9


def test_the_ratio_is_a_median_of_pairs_not_a_ratio_of_medians() -> None:
    # each round is twice as slow for the peer, whatever the machine did to the round
    ours, theirs = [1.0, 10.0, 100.0, 3.0], [2.0, 20.0, 200.0, 6.0]
    assert paired(theirs, ours) == (2.0, 2.0, 2.0)
    assert paired([2.0, 1.0, 8.0, 3.0, 5.0], [1.0] * 5) == (2.0, 3.0, 5.0)


def test_pairs_must_come_from_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired([1.0, 2.0], [1.0])


def test_twice_as_fast_and_half_as_fast_cancel() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)


def test_the_garbage_collector_waits_and_comes_back_after_an_error() -> None:
    seen = []

    def fails(index: int) -> Seconds:
        seen.append(gc.isenabled())
        raise OSError("the contender's own")

    with pytest.raises(OSError, match="own"):
        interleave({"a": fails}, 0.0)
    assert seen == [False]
    assert gc.isenabled()
