"""Interrupts at chosen lines: a tracer raises, or sends a signal to its own process, where a run visits a line of ours.

A line is interrupted at its first or its last visit: what comes between meets the same code in the same state of mind.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import normkit

_HOME = str(Path(normkit.__file__).parent)
Line = tuple[str, int]


def _raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def _raise_memory_error() -> None:
    raise MemoryError("planted")


def _send_signal() -> None:
    signal.raise_signal(signal.SIGINT)


# What arrives, and as what it may fly out: an error may be told in other words. A signal is held back where ours hold
# signals back; an exception flies from any line.
ARRIVALS: dict[str, tuple[Callable[[], None], type[BaseException]]] = {
    "exception": (_raise_keyboard_interrupt, KeyboardInterrupt),
    "signal": (_send_signal, KeyboardInterrupt),
    "error": (_raise_memory_error, Exception),
}


def visits(run: Callable[[], Any]) -> Counter[Line]:
    """How often `run` visits each line of normkit."""
    seen: Counter[Line] = Counter()
    _traced(run, lambda line: seen.update([line]))
    return seen


def interrupted(run: Callable[[], Any], line: Line, visit: int, arrival: str) -> tuple[bool, bool]:
    """`run` with an arrival at one visit of a line. Returns whether it came to that, and whether it flew out."""
    act, kind = ARRIVALS[arrival]
    left = [visit]

    def at(now: Line) -> None:
        if now == line:
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)  # one is enough: it is not for the lines that clean up after it
                act()

    try:
        _traced(run, at)
    except kind:
        return True, True
    return left[0] <= 0, False


def _traced(run: Callable[[], Any], at: Callable[[Line], None]) -> None:
    def local(frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            at((frame.f_code.co_filename[len(_HOME) + 1 :], frame.f_lineno))
        return local

    def calls(frame: Any, event: str, argument: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(_HOME) else None

    before = sys.gettrace()
    sys.settrace(calls)
    try:
        run()
    finally:
        sys.settrace(before)
