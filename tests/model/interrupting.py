"""Interrupts at chosen lines: a tracer raises, or sends a signal to its own process, where a run visits a line of ours.

The run goes on to its end once; at each point it is forked, and what arrives, arrives in the child. So every line costs
what flies out of it, and not a whole run. A line is interrupted at its first or its last visit: what comes between
meets the same code in the same state of mind.
"""

from __future__ import annotations

import dis
import json
import os
import random
import select
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

import normkit

_HOME = str(Path(normkit.__file__).parent)
Line = tuple[str, int]
Point = tuple[Line, int]  # a line and its how manieth visit
_PATIENCE = 120  # seconds for one child


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


def interrupted(
    run: Callable[[], Any], points: Iterable[Point], arrival: str, judge: Callable[[bool], Any]
) -> dict[Point, Any]:
    """What `judge` says of an arrival at each of these points, by point; a point that the run does not reach is absent.

    judge: called in the child, with whether the arrival flew out of `run`; what it returns is JSON.
    """
    act, kind = ARRIVALS[arrival]
    wanted, seen, found = set(points), Counter[Line](), dict[Point, Any]()
    child = _Child()

    def at(line: Line) -> None:
        seen[line] += 1
        point = line, seen[line]
        if point not in wanted:
            return
        answer = child.fork()
        if child.is_here:
            sys.settrace(None)  # one is enough: it is not for the lines that clean up after it
            act()
        else:
            found[point] = answer

    flew, other = False, None
    try:
        _traced(run, at)
    except BaseException as error:
        if not child.is_here:
            raise
        flew, other = isinstance(error, kind), error
    if child.is_here:
        child.answer(lambda: judge(flew) if flew or other is None else f"raised {type(other).__name__}: {other}")
    return found


class _Child:
    """A copy of this process that gives one answer and ends."""

    def __init__(self) -> None:
        self._pipe: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether this is the copy."""
        return self._pipe is not None

    def fork(self) -> Any:
        """The copy's answer, in the process that it was made of; in the copy, None at once."""
        readable, writable = os.pipe()
        state = random.getstate()
        process = os.fork()
        if process == 0:
            random.setstate(state)  # Python seeds its random numbers anew in a child
            os.close(readable)
            self._pipe = writable
            return None
        os.close(writable)
        text = b""
        with os.fdopen(readable, "rb") as stream:
            while select.select([stream], [], [], _PATIENCE)[0] and (part := os.read(readable, 1 << 16)):
                text += part
        os.kill(process, signal.SIGKILL)  # it has answered, or never will
        os.waitpid(process, 0)
        return json.loads(text) if text else "the process died, or gave no answer"

    def answer(self, make: Callable[[], Any]) -> None:
        """Say what `make` gives, and end: no test of this copy runs on."""
        assert self._pipe is not None
        try:
            text = json.dumps(make())
        except BaseException as error:
            text = json.dumps(f"cannot be judged: {type(error).__name__}: {error}")
        try:
            os.write(self._pipe, text.encode()[: 1 << 16])
        finally:
            os._exit(0)


@cache
def _does_nothing(code: CodeType) -> frozenset[int]:
    """Where a line is an instruction that does nothing, as `try:` is. Nothing can be raised there but by a tracer, and
    CPython leaves it out of the blocks that catch what is raised around it."""
    return frozenset(i.offset for i in dis.get_instructions(code) if i.opname == "NOP")


def _traced(run: Callable[[], Any], at: Callable[[Line], None]) -> None:
    def local(frame: Any, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_lasti not in _does_nothing(frame.f_code):
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
