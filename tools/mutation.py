"""Plant classic bugs one at a time in a copy of the package and see whether the tests notice.

    python -m tools.mutation            all of them
    python -m tools.mutation NAME ...   some
    python -m tools.mutation --list     their names
    python -m tools.mutation --jobs 4   so many at a time; each has a copy of its own

Each bug replaces one piece of text in one file of a temporary copy of src/normkit; the real tree is never touched.
The tests named beside it run against that copy, in a process bounded in time. Bugs of the C++ kernels go into a copy of
native/, whose stand-alone test is compiled and run (native_mutation.py). Exit code 1 when a text is no longer there
(then the code has moved on, and the bug must be planted anew), or when fewer than LEAST of the bugs are caught.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

from tools.native_mutation import SLOW, Workshop
from tools.planted import BUGS, Bug
from tools.planted_native import NATIVE_BUGS

MOVED = "no longer holds the text to replace"
ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240  # seconds for one bug's tests; most take a few
LEAST = 0.95  # share of the bugs that must be caught

# The editable install finds the package before any path does; the copy must come first, in child processes too.
CUSTOMIZE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""


def plant(bug: Bug, copy: Path) -> None:
    """Copy the package and put the bug in; ValueError when its text is not there."""
    shutil.copytree(ROOT / "src" / "normkit", copy / "normkit", ignore=shutil.ignore_patterns("__pycache__"))
    native = importlib.util.find_spec("normkit._native")
    if native is not None and native.origin is not None:
        shutil.copy(native.origin, copy / "normkit")
    (copy / "sitecustomize.py").write_text(CUSTOMIZE)
    target = copy / "normkit" / bug.file
    text = target.read_text()
    if bug.old not in text:
        raise ValueError(f"{bug.file} {MOVED}: {bug.old!r}")
    target.write_text(text.replace(bug.old, bug.new, 1))


def caught(bug: Bug) -> tuple[bool, str]:
    """Whether the tests fail with the bug in, and the first test that did (or why not)."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            plant(bug, Path(folder))
        except ValueError as error:
            return False, str(error)
        arguments = [bug.tests, "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not nightly", "--tb=no"]
        command = [sys.executable, "-m", "pytest", *arguments]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return False, f"{SLOW} {LIMIT} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 1 and failed:
        return True, failed[0].split(" ", 1)[1].split(" - ")[0]
    if done.returncode == 0:
        return False, f"{bug.tests} pass"
    return done.returncode < 0, (done.stdout + done.stderr)[-300:]  # a crash is a catch, a broken run is not


def caught_in_python(names: list[str], pool: ThreadPoolExecutor) -> Iterator[tuple[str, bool, str]]:
    tests = dict.fromkeys(BUGS[name].tests for name in names)
    clean = [next(bug for bug in BUGS.values() if bug.tests == test) for test in tests]
    for test, (fails, by) in zip(tests, pool.map(caught, [replace(bug, new=bug.old) for bug in clean]), strict=True):
        if fails or SLOW in by:  # a test that fails anyway would catch everything
            raise SystemExit(f"{test} does not pass without any bug: {by}")
    for name, (ok, by) in zip(names, pool.map(caught, [BUGS[name] for name in names]), strict=True):
        yield name, ok, by


def caught_in_the_kernels(names: list[str], pool: ThreadPoolExecutor) -> Iterator[tuple[str, bool, str]]:
    if not names:
        return
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))

        def alone(name: str) -> tuple[bool, str]:
            with tempfile.TemporaryDirectory() as place:
                return workshop.caught(NATIVE_BUGS[name], Path(place))

        for name, (ok, by) in zip(names, pool.map(alone, names), strict=True):
            yield name, ok, by


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant classic bugs and see whether the tests notice.")
    parser.add_argument("names", nargs="*", help="bugs to plant; all by default")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time (default: %(default)s)")
    options = parser.parse_args()
    every = {**BUGS, **NATIVE_BUGS}
    if unknown := set(options.names) - set(every):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list shows the names")
    if options.list:
        print("\n".join(f"{name:36}{bug.what}" for name, bug in every.items()))
        return 0
    names = options.names or list(every)
    with ThreadPoolExecutor(options.jobs) as pool:  # each waits for a process
        outcomes = []
        kernels = caught_in_the_kernels([name for name in names if name in NATIVE_BUGS], pool)
        for name, ok, by in chain(caught_in_python([name for name in names if name in BUGS], pool), kernels):
            outcomes.append((ok, by))
            print(f"{'caught' if ok else 'MISSED':8}{name:38}{by}", flush=True)
    found, gone = sum(ok for ok, _ in outcomes), sum(MOVED in by for _, by in outcomes)
    print(f"{found} of {len(names)} caught, at least {LEAST:.0%} asked")
    return 0 if found >= LEAST * len(names) and not gone else 1


if __name__ == "__main__":
    sys.exit(main())
