"""Other processes that compute while something is timed, as data loaders and neighbours on a shared host do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 256
# It ends by itself where its standard input is closed, so nothing stays behind when the parent is killed.
_LOOP = """
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
x = 0
while True:
    for _ in range(100_000):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
"""


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Let so many single-threaded processes compute until the block ends."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            started.append(subprocess.Popen([sys.executable, "-S", "-c", _LOOP], stdin=subprocess.PIPE))
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()
