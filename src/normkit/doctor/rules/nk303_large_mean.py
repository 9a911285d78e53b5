"""The mean is far larger than the deviation, in low precision.

What it checks: |mean| / sqrt(var + eps) of a norm's inputs, against 0.05 / u, where u is the rounding of their type:
13 in bfloat16, 102 in float16, 840,000 in float32.

Why: a value near the mean is stored to within u |mean|. At a ratio of 100 in bfloat16 that is 0.4 deviations: what
the norm divides by is rounding, whatever precision it computes in.

Ignore it: where the channel carries nothing. A note.

Sources: Higham 2002, Accuracy and Stability of Numerical Algorithms, section 1.9; docs/contract.md
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled
from ..finding import Finding, make

CODE, WHERE = "NK303", "0"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        run = evidence.measured(norm)
        if run is None or run.mean is None or run.var is None or not run.traffic.dtype.is_floating_point:
            continue
        limit = 0.05 / (torch.finfo(run.traffic.dtype).eps / 2)
        ratio = float((run.mean.abs() / (run.var + (norm.eps or 0.0)).sqrt()).nan_to_num(nan=0, posinf=0).max())
        if ratio > limit:
            yield make(
                CODE,
                norm.where,
                "note",
                f"a channel's mean is {ratio:.3g} times its deviation, in {run.traffic.dtype}",
                "subtract a constant before, or keep this layer's input in float32",
                measured=ratio,
                limit=limit,
                unit="|mean| / sqrt(var + eps)",
            )


def sick() -> Example:
    offset = [batch.add(100).bfloat16() for batch in images()]
    model = settled(nn.Sequential(nn.BatchNorm2d(3)), [batch.float() for batch in offset])
    return model, offset


def healthy() -> Example:
    model = settled(nn.Sequential(nn.BatchNorm2d(3)), images())
    return model, [batch.bfloat16() for batch in images()]
