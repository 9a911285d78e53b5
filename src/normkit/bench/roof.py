"""The roof: what the machine does when nothing but memory moves.

`clone` writes a fresh tensor, page faults included, as every norm must: shares are quoted against it, and it is timed
in the same rounds. `copy` writes a buffer that is there already, and is quoted beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from .problem import Problem
from .timing import Seconds


def calls(problem: Problem) -> dict[str, Callable[[int], Seconds]]:
    """The two contenders, by name."""
    buffer = torch.empty_like(problem.sets[0].x).detach().copy_(problem.sets[0].dy)  # touched: its pages are there

    def clone(index: int) -> Seconds:
        x = problem.sets[index % len(problem.sets)].x.detach()
        start = time.perf_counter()
        copied = x.clone()
        seconds = time.perf_counter() - start
        del copied  # after the clock: a norm's output outlives the call too
        return Seconds(seconds)

    def copy(index: int) -> Seconds:
        x = problem.sets[index % len(problem.sets)].x.detach()
        start = time.perf_counter()
        buffer.copy_(x)
        return Seconds(time.perf_counter() - start)

    return {"clone": clone, "copy": copy}
