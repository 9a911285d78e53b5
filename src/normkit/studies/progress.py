"""Progress bars and the last lines of a command, drawn by rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def bars(
    titles: Mapping[str, str], counts: Mapping[str, int], done: Mapping[str, int]
) -> Iterator[Callable[[str], None]]:
    """One bar a key; yields the function that moves the bar of a key by one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        tasks = {
            key: progress.add_task(titles[key], start=False, total=counts[key], completed=done[key]) for key in titles
        }

        def advance(key: str) -> None:
            progress.start_task(tasks[key])  # the clock of a bar runs from its first finished run
            progress.advance(tasks[key])

        yield advance


def show(results: Mapping[str, Any], html: str) -> None:
    """The short table of what was shown, and where the report lies."""
    from rich.console import Console
    from rich.table import Table

    from .report import geometric_mean, name, number

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("act", "what was shown", "outcome"):
        table.add_column(heading)
    if rows := results["right"]:
        ours, theirs = (sum(row[f"{who}_right"] for row in rows) for who in ("normkit", "torch"))
        table.add_row("1", f"{len(rows)} computations against float64", f"normkit right in {ours}, torch in {theirs}")
    if rows := results["fast"]:
        worst = min(rows, key=lambda row: row["ratio"])
        mean = geometric_mean([row["ratio"] for row in rows])
        speed = f"{number(mean)}x torch's speed (geometric mean); least {number(worst['ratio'])}x at {name(worst)}"
        table.add_row("2", f"batch norm forward + backward, {len(rows)} shapes", speed)
    for study in results["studies"]:
        table.add_row("3", study["title"], study["verdict"]["word"])
    console = Console()
    console.print()
    console.print(table)
    console.print(f"\nreport: {html}", soft_wrap=True, highlight=False)
