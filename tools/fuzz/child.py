"""A process that runs cases and may die of one: what it ran then is known, and the next case gets a new process.

Children are forked from a server that has imported torch and normkit and run nothing, so a new one costs milliseconds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case
from .finding import Finding

Run = Callable[[Case, Callable[[str], None]], Finding | None]
Work = Callable[[], tuple[Run, Run]]

STAGES = ("idle", "make", "normkit", "torch", "truth", "judge")
RENEW = 400  # cases, then a new process: what one leaves behind cannot pile up

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tools.fuzz.work"])


class Child:
    """One process at a time. limit: seconds for a case. work: as `work.prepare`, which it replaces.

    ran: how many cases the process has run, the one that it died of among them.
    """

    def __init__(self, limit: float, work: Work | None = None) -> None:
        self._limit, self._work = limit, work
        self._process: Any = None
        self.ran = 0
        self.torch_crashes = 0

    def find(self, case: Case) -> Finding | None:
        """As `run`, but a crash or a hang of which torch's own program of the case dies too is torch's: counted, and
        no finding."""
        finding = self.run(case)
        if finding is None or finding.kind not in ("crash", "hang"):
            return finding
        before = self.torch_crashes
        self.run(case, torch_alone=True)
        return finding if self.torch_crashes == before else None

    def run(self, case: Case, torch_alone: bool = False) -> Finding | None:
        """What running the case in the child finds; its death or its silence is a finding too."""
        if self._process is None or not self._process.is_alive() or self.ran >= RENEW:
            self._start()
        self.ran += 1
        try:
            self._pipe.send((case, torch_alone))
            if not self._pipe.poll(self._limit):
                os.kill(self._process.pid, signal.SIGUSR1)  # it writes where its threads are
                self._process.join(1)
                return self._end("hang", f"no answer within {self._limit:g} s")
            answer, is_last = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            return self._end("crash", _cause(self._process.exitcode))
        if isinstance(answer, str):
            self.close()
            raise RuntimeError(f"the fuzzer itself failed on {case}:\n{answer}")
        if is_last:
            self.close()
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.join()
            self._pipe.close()
            self._log.unlink(missing_ok=True)
            self._process = None

    def _start(self) -> None:
        self.close()
        handle, name = tempfile.mkstemp(prefix="fuzz-", suffix=".log")
        os.close(handle)
        self._log, self.ran = Path(name), 0
        self._stage = _context.RawValue("i", 0)
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_serve, args=(theirs, self._stage, name, self._work), daemon=True)
        self._process.start()
        theirs.close()

    def _end(self, kind: str, what: str) -> Finding | None:
        stage = STAGES[self._stage.value]
        text = self._log.read_text(errors="replace")
        self.close()
        if stage == "torch":
            self.torch_crashes += 1
            return None
        if stage != "normkit":
            raise RuntimeError(f"{kind} while the fuzzer itself was at work ({stage}): {what}\n{text[-2000:]}")
        return Finding(kind, what, _place(text), 5)


def _cause(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _place(text: str) -> str:
    """Where in normkit the process was, and what a sanitizer said."""
    said = re.findall(r"(?:SUMMARY: |runtime error: ).*", text)
    frames = re.findall(r'File ".*?(normkit/[^"]+)", line (\d+) in (\S+)', text)
    return "; ".join([*said[:2], *(f"{file}:{line} {name}" for file, line, name in frames[:2])]) or "no trace"


def _serve(pipe: Any, stage: Any, log: str, work: Work | None) -> None:
    """The child: takes cases, gives findings."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    faulthandler.enable(handle)
    faulthandler.register(signal.SIGUSR1, handle, all_threads=True)
    from .run import is_lost
    from .work import prepare

    both = prepare() if work is None else work()

    def tell(name: str) -> None:
        stage.value = STAGES.index(name)

    while True:
        try:
            case, torch_alone = pipe.recv()
        except EOFError:
            return
        try:
            answer: Any = both[torch_alone](case, tell)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        stage.value = 0
        is_last = is_lost()
        pipe.send((answer, is_last))
        if is_last:
            return
