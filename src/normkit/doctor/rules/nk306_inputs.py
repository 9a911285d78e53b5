"""A norm's input is not finite.

What it checks: NaN or Inf in what a norm reads, with all statistics right.

Why: one NaN in a batch makes the whole channel NaN in training, and running statistics for ever. Where it begins is
the first layer, in the order of the calls, of which this is said.

Ignore it: never; where the batches themselves hold NaN, mend them.

Sources: pytorch#90342, pytorch#115500
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

CODE, WHERE = "NK306", "1"


def check(evidence: Evidence) -> Iterator[Finding]:
    bad = [(run, norm) for norm in evidence.norms if (run := evidence.run(norm)) is not None and run.traffic.non_finite]
    for _, norm in sorted(bad, key=lambda pair: pair[0].traffic.order)[:1]:
        yield make(
            CODE,
            norm.where,
            "error",
            "its input holds NaN or Inf"
            + (f", and so do those of {len(bad) - 1} norms after it" if len(bad) > 1 else ""),
            "look at what comes before it: data, weights, overflow",
            measured=len(bad),
            limit=0,
            unit="norms",
        )


def sick() -> Example:
    spoiled = images()
    spoiled[2][0, 0, 0, 0] = float("inf")
    return small_net(), spoiled


def healthy() -> Example:
    return small_net(), images()
