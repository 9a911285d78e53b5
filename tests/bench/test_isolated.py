"""An object in a process of its own: calls reach it, errors come back, its end is told."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from normkit.bench.isolated import Isolated


class Counter:
    """Counts, fails, or ends its process."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise ValueError("negative")
        self.count = start

    def more(self) -> int:
        self.count += 1
        return self.count

    def process(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise KeyError("lost")

    def end(self) -> None:
        os._exit(3)


@pytest.fixture(scope="module")
def counter() -> Iterator[Isolated]:
    with Isolated(Counter, 4) as found:
        yield found


def test_calls_reach_one_object_in_another_process(counter: Isolated) -> None:
    assert [counter.call("more"), counter.call("more")] == [5, 6]
    assert counter.call("process") != os.getpid()


def test_errors_come_back_and_leave_it_alive(counter: Isolated) -> None:
    with pytest.raises(KeyError, match="lost"):
        counter.call("fail")
    assert counter.call("process")


def test_an_object_that_cannot_be_made_says_why_at_the_first_call() -> None:
    with Isolated(Counter, -1) as found, pytest.raises(ValueError, match="negative"):
        found.call("more")


def test_the_end_of_the_process_is_told() -> None:
    with Isolated(Counter, 0) as found, pytest.raises(RuntimeError, match="asked for end has ended"):
        found.call("end")
