"""All that a release needs, in one table: `python -m tools.release [--out build/release] [--without-tests|--portable]`.

Runs what every change must pass, builds the source archive, the wheel of Python alone and a wheel with the core for
each Python of this machine (from 3.12 on one for all), looks into each, installs each into bare environments and
computes with it. Exit 1 where a row fails. The first wheel takes minutes of C++; the others find its kernels in the
compiler's cache.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from . import build, checks, contents, interpreters

STABLE = "3.12"  # one wheel for all Pythons from this one on


class Row(NamedTuple):
    name: str
    good: bool
    detail: str


def row(name: str, check: Callable[[], str]) -> Row:
    try:
        return Row(name, True, check())
    except Exception as error:
        return Row(name, False, str(error) or repr(error))


def packed(made: list[Path], make: Callable[[], Path], look: Callable[[Path], list[str]]) -> str:
    """Build one file and look into it; `made` gets it, and OUT/dist, if it is right."""
    file = make()
    said = checks.expect(look(file), f"{file.name}, {file.stat().st_size / 1e6:.2f} MB")
    dist = file.parents[1] / "dist"
    dist.mkdir(exist_ok=True)
    made.append(Path(shutil.copy(file, dist)))
    return said


def house(out: Path, tests: bool) -> Iterator[Row]:
    yield row("version", checks.version)
    yield row("tree", checks.tree)
    if tests:
        yield row("what must pass", partial(checks.passes, out / "must-pass.log", ".ci/run"))
    yield row("site", partial(checks.passes, out / "site.log", "make", "site"))
    yield row("cibuildwheel", checks.identifiers)


def portable(out: Path) -> Iterator[Row]:
    """The source, and the wheel that needs no compiler, used in the oldest Python."""
    yield row("source", partial(packed, [], partial(build.source, out), contents.of_source))
    pure: list[Path] = []
    yield row("wheel without core", partial(packed, pure, partial(build.pure, out), contents.of_wheel))
    for wheel in pure:
        version, python = next(iter(interpreters.found().items()))
        yield row(f"used in {version}", partial(checks.use, wheel, python, out / f"use-{version}", "pure"))


def native(out: Path) -> Iterator[Row]:
    used: set[str] = set()
    stable: list[Path] = []
    for version, python in interpreters.found().items():
        wheels = [] if _minor(version) < _minor(STABLE) else stable
        if not wheels:
            make = partial(build.wheel, python, version, out)
            yield row(f"wheel of {version}", partial(packed, wheels, make, contents.of_wheel))
        for wheel in wheels:
            seen = row(f"used in {version}", partial(checks.use, wheel, python, out / f"use-{version}", "native"))
            used |= {version} if seen.good else set()
            yield seen
    yield row("classifiers", partial(checks.classifiers, used))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("build/release"))
    parser.add_argument("--without-tests", action="store_true", help="leave out .ci/run, which takes an hour")
    parser.add_argument("--portable", action="store_true", help="the source and the wheel without the core alone")
    options = parser.parse_args()
    good = True
    out = options.out.resolve()
    parts = [portable(out)] if options.portable else [house(out, not options.without_tests), portable(out), native(out)]
    for name, passed, detail in chain(*parts):
        print(f"{'ok' if passed else 'NO':3} {name:20} {detail}", flush=True)
        good &= passed
    return 0 if good else 1


def _minor(version: str) -> int:
    return int(version.partition(".")[2])


if __name__ == "__main__":
    sys.exit(main())
