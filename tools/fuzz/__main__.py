"""`python -m tools.fuzz`: runs cases on all processors until the time is over, then says what they found."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from .child import Child
from .findings import Findings, Kind
from .generate import draw
from .script import script
from .shrink import shrink


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 when there are findings."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz", description="Fuzz normkit's public functions and layers."
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long to draw new cases (default 60)")
    parser.add_argument("--cases", type=int, default=None, help="how many cases at most")
    parser.add_argument("--seed", type=int, default=0, help="which cases")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--case", type=int, default=None, help="run this one alone, and print its program")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=30, help="seconds for one case")
    parser.add_argument("--least", type=int, default=1, help="the least severity that counts, 1 to 5")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="where scripts of findings go")
    options = parser.parse_args(arguments)
    if options.case is not None:
        return one(options.seed, options.case, options.limit)
    campaign = Campaign(options.seed, options.limit, options.least)
    campaign.run(options.first, options.cases, options.seconds, options.jobs)
    return campaign.report(options.out)


def one(seed: int, number: int, limit: float) -> int:
    """Run one case and show it whole."""
    case, child = draw(seed, number), Child(limit)
    finding = child.run(case)
    child.close()
    if finding is None:
        from .program import render, render_make

        print(render_make(case), render(case, "normkit"), f"case {number} of seed {seed}: nothing found", sep="\n")
        return 0
    print(script(number, seed, case, finding))
    return 1


class Campaign:
    """One run of many cases."""

    def __init__(self, seed: int, limit: float, least: int) -> None:
        self.seed, self.limit, self.least = seed, limit, least
        self.findings, self.norms = Findings(), Counter[str]()
        self.ran, self.torch_crashes, self.seconds = 0, 0, 0.0
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def run(self, first: int, most: int | None, seconds: float, jobs: int) -> None:
        """Run cases from number `first` on, in `jobs` processes, for that long."""
        begin = time.monotonic()
        numbers = iter(range(first, first + most)) if most is not None else itertools.count(first)
        threads = [threading.Thread(target=self._work, args=(numbers, begin + seconds)) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(15 / len(threads))
            self.seconds = time.monotonic() - begin
            print(f"{self.seconds:6.0f} s {self.ran:8} cases, {len(self.findings.kinds)} kinds of findings", flush=True)

    def _work(self, numbers: itertools.count[int], until: float) -> None:
        child = Child(self.limit)
        try:
            while time.monotonic() < until:
                with self._lock:
                    number = next(numbers, None)
                    if number is None:
                        return
                self._case(child, number)
        except RuntimeError as error:
            self.failures.append(str(error))
        finally:
            with self._lock:
                self.torch_crashes += child.torch_crashes
            child.close()

    def _case(self, child: Child, number: int) -> None:
        case = draw(self.seed, number)
        finding = child.run(case)
        with self._lock:
            self.ran += 1
            self.norms[case.norm] += 1
        if finding is None or finding.severity < self.least or self.findings.known(case, finding):
            return
        alone = Child(self.limit)
        try:
            again = alone.run(case)
            if again is None:
                self.findings.add(Kind(number, case, finding, alone=False, norms=frozenset({case.norm})))
                return
            small, finding = shrink(case, again, alone.run)
        finally:
            alone.close()
        self.findings.add(Kind(number, small, finding, norms=frozenset({case.norm})))

    def report(self, out: Path) -> int:
        """Print the findings, the worst first; write a script of each. 1 if there are any."""
        kinds = self.findings.sorted()
        if kinds:
            out.mkdir(parents=True, exist_ok=True)
        for kind in kinds:
            text = script(kind.number, self.seed, kind.case, kind.finding)
            path = out / f"{_name(kind)}.py"
            path.write_text(text)
            finding = kind.finding
            print(
                f"\n[{finding.severity}] {finding.kind}: {finding.what} ({kind.seen} times, first case {kind.number})"
            )
            print(f"    {finding.detail}\n    {path}{'' if kind.alone else ' (only after other cases)'}")
        for failure in self.failures:
            print(f"\nthe fuzzer failed: {failure}")
        print("\ncases by norm: " + ", ".join(f"{name} {count}" for name, count in self.norms.most_common()))
        if self.torch_crashes:
            print(f"torch itself crashed {self.torch_crashes} times")
        rate = self.ran / max(self.seconds, 1e-9)
        print(
            f"fuzz: seed {self.seed}: {self.ran} cases in {self.seconds:.0f} s ({rate:.0f} a second): "
            f"{len(kinds)} kinds of findings, {self.findings.total} in all"
        )
        return 1 if kinds or self.failures else 0


def _name(kind: Kind) -> str:
    words = re.findall(r"[a-z0-9]+", f"{kind.finding.kind} {kind.finding.what}".lower())
    return "_".join(words)[:50] + f"_{kind.number}"


if __name__ == "__main__":
    sys.exit(main())
