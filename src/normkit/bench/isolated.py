"""One object in a process of its own, called from here: what one model frees never serves another.

A model's freed memory is found by the next model of its process, or keeps the C library from handing its own back: in
one process a plain ResNet-50 step took 40 to 50 thousand page faults beside an accelerated one and 90 thousand alone.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any


class Isolated:
    """`make(*arguments)` in a new process, for `with`. All that passes between the processes must be picklable."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        # spawn, not fork: a forked child inherits torch's thread pool in an unusable state
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()  # so that a child that dies is seen at once

    def __enter__(self) -> Isolated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        self._process.join()

    def call(self, method: str) -> Any:
        """What the object's method returns.

        Raises:
            Exception: what making the object or the method raised.
            RuntimeError: the process has ended.
        """
        try:
            self._connection.send(method)
            result, error = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"the process that was asked for {method} has ended") from None
        if error is not None:
            raise error
        return result


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with connection, suppress(EOFError, OSError):
        target, failure = _tried(make, *arguments)
        gc.collect()
        gc.disable()
        while (method := connection.recv()) is not None:
            connection.send((None, failure) if failure else _tried(getattr(target, method)))


def _tried(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error
