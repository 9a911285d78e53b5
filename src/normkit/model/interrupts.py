"""Giving back what was changed although an interrupt (Ctrl-C, an alarm) may arrive at any line.

Python runs a signal's handler between two instructions of the main thread. KeyboardInterrupt may so be raised on the
line of a `with` whose body is over, or at the first line of `__exit__`: a single `with` then gives nothing back. Rules:

- A `Guard` is entered twice, ``with Guard() as guard, guard:``. One interrupt can keep out one exit; the other one does
  the work.
- The first entry does nothing, so the way back is registered before anything is done; the second begins.
- Signals that arrive while something is given back wait until that is done (`HeldBack`).
- A block that users enter is entered once: a `UserBlock` has its way back run twice by the standard library.
"""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from typing import Any, TypeVar

G = TypeVar("G", bound="Guard")
B = TypeVar("B", bound="UserBlock")


class HeldBack:
    """Inside, signals wait; on leaving they are delivered in the order of their arrival. Entered twice, as a `Guard`.

    Signals that Python handles, in the main thread: other threads run no handlers, so nothing interrupts them there.
    Masking would not do: the kernel gives a signal to any thread of the process, and torch has some.
    """

    def __init__(self, holds: bool = True) -> None:
        self._holds, self._entered = holds and threading.current_thread() is threading.main_thread(), False
        self._handlers: dict[int, Any] = {}
        self._waiting: list[int] = []

    def __enter__(self) -> HeldBack:
        if self._entered and self._holds:
            self._handlers = {number: h for number in signal.Signals if callable(h := signal.getsignal(number))}
            for number in self._handlers:
                signal.signal(number, self._wait)
        self._entered = True
        return self

    def _wait(self, number: int, frame: Any) -> None:
        self._waiting.append(number)

    def __exit__(self, *error: object) -> None:
        for number, handler in list(self._handlers.items()):
            signal.signal(number, handler)
            del self._handlers[number]
        while self._waiting:
            signal.raise_signal(self._waiting.pop(0))


class Guard:
    """What `begin` does is undone by `give_back`, which runs once, whatever happens. For one use, entered twice.

    `give_back` may be cut short and run again from its start.
    """

    holds_signals = True
    _entries = 0
    _over = False

    def __enter__(self: G) -> G:
        self._entries += 1
        if self._entries == 2:
            with HeldBack(self.holds_signals) as held, held:
                self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._entries == 2 or error[0] is not None, f"{type(self).__name__} has to be entered twice"
        if self._over:
            return
        with HeldBack(self.holds_signals) as held, held:
            self.give_back()
            self._over = True

    def begin(self) -> None:
        """What is done on entering; the way back is open already."""

    def give_back(self) -> None:
        raise NotImplementedError


class UserBlock(ExitStack):
    """The same for a block that a user enters, once or again and again. `leave` may run twice."""

    def __enter__(self: B) -> B:
        try:
            self.callback(self._leave)
            self.callback(self._leave)
            self.begin()
            return self
        except BaseException:
            self.close()
            raise

    def _leave(self) -> None:
        with HeldBack() as held, held:
            self.leave()

    def begin(self) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        raise NotImplementedError
