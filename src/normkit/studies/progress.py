"""What a command shows while it runs, and its last lines.

On a terminal: bars with the time left, drawn by rich. Anywhere else (a file, a pipe, a dumb terminal): a line when a
task ends, without control characters. Both print the line of a finished task.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .listing import duration
from .verdict import Part, Verdict


@dataclass(frozen=True)
class Task:
    """One bar: `total` steps of about `seconds` each, `done` of them before; `outcome` says what came of them."""

    title: str
    total: int
    seconds: float
    outcome: Callable[[], str]
    done: int = 0


@contextmanager
def shown(tasks: Mapping[str, Task], jobs: int) -> Iterator[Callable[[str], None]]:
    """Show the tasks; yields the function that says that a step of the task of this key is finished."""
    clock, done = _Clock(tasks, jobs), {key: task.done for key, task in tasks.items()}
    view = _bars if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else _lines
    with view(tasks, clock) as (say, move):

        def look(key: str) -> None:
            if done[key] == tasks[key].total:
                left = clock.left()
                say(f"{tasks[key].title}: {tasks[key].outcome()}" + (f"; about {duration(left)} left" if left else ""))

        def advance(key: str) -> None:
            done[key] += 1
            clock.advance(tasks[key].seconds)
            move(key)
            look(key)

        for key in tasks:
            look(key)
        yield advance


class _Clock:
    """The time left: from the tasks' own estimates until a step is finished, then in proportion to the time taken."""

    def __init__(self, tasks: Mapping[str, Task], jobs: int) -> None:
        self._start = time.monotonic()
        self._done = 0.0
        self._all = sum((task.total - task.done) * task.seconds for task in tasks.values())
        self._end = self._start + self._all / jobs

    def advance(self, seconds: float) -> None:
        now = time.monotonic()
        self._done += seconds
        self._end = now + (now - self._start) * max(0.0, self._all - self._done) / self._done

    def left(self) -> float:
        """Seconds; 0 once nothing is left."""
        rest = self._all - self._done
        return 0.0 if rest < 1e-6 * self._all or not self._all else max(0.0, self._end - time.monotonic())


View = tuple[Callable[[str], None], Callable[[str], None]]  # say a line; move a bar


@contextmanager
def _lines(tasks: Mapping[str, Task], clock: _Clock) -> Iterator[View]:
    def say(line: str) -> None:
        print(line, flush=True)

    steps = sum(task.total - task.done for task in tasks.values())
    if steps:
        say(f"{steps} runs to do, about {duration(clock.left())}")
    yield say, lambda key: None


@contextmanager
def _bars(tasks: Mapping[str, Task], clock: _Clock) -> Iterator[View]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Left(ProgressColumn):
        """The time that the whole command still takes, on its row alone."""

        def render(self, task: Any) -> Text:
            left = clock.left() if task.fields.get("whole") else 0.0
            return Text(f"about {duration(left)} left" if left else "", style="progress.remaining")

    columns = (TextColumn("{task.description:<34}", markup=False), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns) as progress:
        rows = {k: progress.add_task(t.title, total=t.total, completed=t.done) for k, t in tasks.items()}
        total, done = (sum(getattr(task, name) for task in tasks.values()) for name in ("total", "done"))
        whole = progress.add_task("all", total=total, completed=done, whole=True)

        def move(key: str) -> None:
            progress.advance(rows[key])
            progress.advance(whole)

        yield lambda line: progress.console.print(line, markup=False, highlight=False), move


def show(results: Mapping[str, Any], html: str) -> None:
    """The short table of what was shown, and where the report lies."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("act", "what was shown", "outcome"):
        table.add_column(heading)
    if rows := results["right"]:
        table.add_row("1", f"{len(rows)} computations against float64", right(rows))
    if rows := results["fast"]:
        table.add_row("2", f"batch norm forward + backward, {len(rows)} shapes", fast(rows))
    for study in results["studies"]:
        verdict = Verdict.from_json(study["verdict"])
        stable = f"\n{study['stable']}" if study.get("stability") else ""
        outcome = Text(f"{verdict.word}\n{decided(verdict.deciding)}{stable}")
        outcome.stylize("bold", 0, len(verdict.word))
        table.add_row("3", study["title"], outcome)
    console = Console()
    console.print()
    console.print(table)
    if any(not study.get("stability") for study in results["studies"]):
        console.print("\nThe words are the rule's own; how stable they are was not measured (--stability).")
    console.print(f"\nreport: {html}", soft_wrap=True, highlight=False, markup=False)


def right(rows: Sequence[Mapping[str, Any]]) -> str:
    """Act 1 in a line."""
    ours, theirs = (sum(row[f"{who}_right"] for row in rows) for who in ("normkit", "torch"))
    return f"normkit right in {ours}, torch in {theirs}"


def fast(rows: Sequence[Mapping[str, Any]]) -> str:
    """Act 2 in a line."""
    from .report import geometric_mean, name, number

    worst = min(rows, key=lambda row: row["ratio"])
    mean = geometric_mean([row["ratio"] for row in rows])
    return f"{number(mean)}x torch's speed (geometric mean); least {number(worst['ratio'])}x at {name(worst)}"


def decided(part: Part) -> str:
    """The part that a verdict hangs on: what was measured, what was asked, and the test."""
    from .report import number

    interval = "" if part.low is None else f" [{number(part.low)}, {number(part.high)}]"
    asked = {"above": "more than", "below": "less than", "within": "at most"}[part.rule]
    measured = f"{number(part.measured)}{f' {part.unit}' if part.unit else ''}{interval}"
    return f"“{part.claim}”: {measured}, asked for {asked} {number(part.margin)}; {part.reason}"
