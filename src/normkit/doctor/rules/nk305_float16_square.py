"""x^2 overflows float16.

What it checks: float16 inputs of a norm beyond 255.9, whose square is beyond float16's largest number, 65504.

Why: an implementation that squares in float16, as many RMS norms written by hand do, gets Inf; the output is then 0.
torch's and normkit's own compute in float32.

Ignore it: where the norm is torch's or normkit's. A note.

Sources: the T5 and Llama ports that cast to float32 inside of their RMS norms for this reason
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled
from ..finding import Finding, make

LIMIT = 255.9

CODE, WHERE = "NK305", "0"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        run = evidence.run(norm)
        if run is not None and run.traffic.dtype is torch.float16 and run.traffic.largest > LIMIT:
            yield make(
                CODE,
                norm.where,
                "note",
                f"an input of {run.traffic.largest:.4g} has a square beyond float16",
                "compute the norm in float32",
                measured=run.traffic.largest,
                limit=LIMIT,
                unit="largest |input|",
            )


def sick() -> Example:
    large = [batch.mul(500).half() for batch in images()]
    return settled(nn.Sequential(nn.BatchNorm2d(3)), [batch.float() for batch in large]), large


def healthy() -> Example:
    return settled(nn.Sequential(nn.BatchNorm2d(3)), images()), [batch.half() for batch in images()]
