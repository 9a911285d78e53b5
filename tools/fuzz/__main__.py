"""`python -m tools.fuzz`: runs cases on all processors until the time is over, then says what they found."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path

from .campaign import Campaign
from .child import Child
from .generate import draw
from .program import render, render_make
from .replay import after
from .script import script


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 when there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Fuzz normkit's functions and layers.")
    parser.add_argument("--seconds", type=float, default=60, help="how long to draw new cases (default 60)")
    parser.add_argument("--cases", type=int, default=None, help="how many cases at most")
    parser.add_argument("--seed", type=int, default=0, help="which cases (default 0)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case (default 0)")
    parser.add_argument("--case", type=int, default=None, help="run this one alone, and print its program")
    parser.add_argument("--after", type=int, nargs="*", default=[], help="run these before it, in the same process")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=30, help="seconds for one case (default 30)")
    parser.add_argument("--least", type=int, default=2, help="the least severity that counts, 1 to 5 (default 2)")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="where the scripts of findings go")
    options = parser.parse_args(arguments)
    if options.case is not None:
        return one(options.seed, options.case, options.after, options.limit)
    campaign = Campaign(options.seed, options.limit, options.least)
    last = None if options.cases is None else options.first + options.cases
    numbers = itertools.count(options.first) if last is None else iter(range(options.first, last))
    campaign.run(numbers, options.seconds, options.jobs)
    return campaign.report(options.out)


def one(seed: int, number: int, earlier: list[int], limit: float) -> int:
    """Run one case, alone or after others, and print it whole."""
    case, child = draw(seed, number), Child(limit)
    finding = after(child, [draw(seed, n) for n in earlier], case) if earlier else child.find(case)
    child.close()
    if finding is not None:
        print(script(number, seed, case, finding))
        return 1
    verdict = "torch itself dies of it" if child.torch_crashes else "nothing found"
    print(render_make(case), render(case, "normkit"), f"case {number} of seed {seed}: {verdict}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
