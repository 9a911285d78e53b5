"""One run of many cases: a thread for each processor, each with a child process, and what they found."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from .case import Case
from .child import Child, Work
from .finding import Finding
from .findings import Findings, Kind
from .generate import draw
from .replay import fewest
from .script import script
from .shrink import shrink


class Campaign:
    """Runs cases and keeps the findings. limit: seconds for one case. least: the severity from which one counts."""

    def __init__(
        self,
        seed: int,
        limit: float = 30,
        least: int = 1,
        *,
        draw: Callable[[int, int], Case] = draw,
        work: Work | None = None,
    ) -> None:
        self.seed, self.limit, self.least = seed, limit, least
        self._draw, self._work = draw, work
        self.findings, self.norms, self.failures = Findings(), Counter[str](), list[str]()
        self.ran, self.torch_crashes, self.seconds = 0, 0, 0.0
        self._lock = threading.Lock()

    def run(self, numbers: Iterator[int], seconds: float, jobs: int, every: float = 15) -> None:
        """Run the cases of these numbers, in `jobs` processes, for that long; say how far it is `every` so often."""
        begin = time.monotonic()
        threads = [threading.Thread(target=self._serve, args=(numbers, begin + seconds)) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        said = begin
        for thread in itertools.cycle(threads):
            thread.join(0.2)
            self.seconds = time.monotonic() - begin
            if not any(t.is_alive() for t in threads):
                break
            if time.monotonic() - said > every:
                said = time.monotonic()
                kinds = len(self.findings.kinds)
                print(f"{self.seconds:6.0f} s {self.ran:8} cases, {kinds} kinds of findings", flush=True)

    def _serve(self, numbers: Iterator[int], until: float) -> None:
        child, ran = Child(self.limit, self._work), list[int]()
        try:
            while time.monotonic() < until and len(self.failures) < 5:
                with self._lock:
                    number = next(numbers, None)
                if number is None:
                    return
                ran.append(number)
                try:
                    self._run(child, ran)
                except Exception as error:
                    self.failures.append(f"case {number}: {type(error).__name__}: {error}")
                    child.close()
        finally:
            with self._lock:
                self.torch_crashes += child.torch_crashes
            child.close()

    def _run(self, child: Child, ran: list[int]) -> None:
        """Run the last of the cases that this child is given."""
        number = ran[-1]
        case = self._draw(self.seed, number)
        finding = child.run(case)
        with self._lock:
            self.ran += 1
            self.norms[case.norm] += 1
        if finding is None or finding.severity < self.least or self.findings.known(case, finding):
            return
        kind = self._examine(number, case, finding, ran[-child.ran : -1])
        if kind is not None:
            self.findings.add(kind)
            print(f"    case {number}: {kind.finding.kind}: {kind.finding.what}", flush=True)

    def _examine(self, number: int, case: Case, found: Finding, earlier: list[int]) -> Kind | None:
        """The finding in a process of its own, as simple as can be; None for a crash that torch shares. earlier: what
        ran before it."""
        alone = Child(self.limit, self._work)
        try:
            again = alone.find(case)
            if again is not None:
                return Kind(found, number, *shrink(case, again, alone.find))
            if alone.torch_crashes:
                return None
            needed = fewest(alone, earlier, lambda n: self._draw(self.seed, n), case, found) or []
            return Kind(found, number, case, found, alone=False, after=tuple(needed))
        finally:
            with self._lock:
                self.torch_crashes += alone.torch_crashes
            alone.close()

    def report(self, out: Path) -> int:
        """Print the findings, the worst first, and write a script of each; 1 if there are any."""
        kinds = self.findings.sorted()
        for kind in kinds:
            out.mkdir(parents=True, exist_ok=True)
            path = out / f"{_name(kind)}.py"
            path.write_text(script(kind.number, self.seed, kind.case, kind.finding))
            finding, times = kind.finding, f"{kind.seen} times, first in case {kind.number}"
            print(f"\n[{finding.severity}] {finding.kind}: {finding.what} ({times})")
            print(f"    {finding.detail}\n    {path}{'' if kind.alone else _needs(kind)}")
        for failure in self.failures:
            print(f"\nthe fuzzer failed: {failure}")
        print("\ncases by norm: " + ", ".join(f"{name} {count}" for name, count in self.norms.most_common()))
        if self.torch_crashes:
            print(f"torch itself died in {self.torch_crashes} cases")
        rate, total = self.ran / max(self.seconds, 1e-9), self.findings.total
        print(
            f"fuzz: seed {self.seed}, {self.ran} cases in {self.seconds:.0f} s ({rate:.0f} a second): "
            f"{len(kinds)} kinds of findings, {total} in all"
        )
        return 1 if kinds or self.failures else 0


def _needs(kind: Kind) -> str:
    options = f": --case {kind.number} --after {' '.join(map(str, kind.after))}" if kind.after else ""
    return f" (only after other cases{options})"


def _name(kind: Kind) -> str:
    words = re.findall(r"[a-z0-9]+", f"{kind.finding.kind} {kind.finding.what}".lower())
    return "_".join(words)[:50] + f"_{kind.number}"
