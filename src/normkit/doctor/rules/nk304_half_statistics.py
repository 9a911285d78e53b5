"""Running statistics in half precision.

What it checks: running_mean or running_var of fewer than 32 bits.

Why: a step of momentum 0.1 that changes a value by less than half of its last bit changes nothing. In bfloat16, with
8 bits, an average stalls 4 % away from its goal: 400 steps towards 4.95 end at 4.78. float16 also ends at 65504,
where variances of activations of 256 lie.

Ignore it: where the statistics do not move any more: a note. A warning in a model that trains.

Sources: README, "Running mean of a .bfloat16() module"; pytorch's autocast leaves statistics float32
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..evidence import Evidence
from ..examples import Example, small_net
from ..finding import Finding, make

NAMES = ("running_mean", "running_var")

CODE, WHERE = "NK304", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        narrow = sorted(
            {str(norm.dtypes[name]) for name in NAMES if name in norm.dtypes and norm.dtypes[name].itemsize < 4}
        )
        if narrow:
            yield make(
                CODE,
                norm.where,
                evidence.in_training(norm),
                f"its statistics are {', '.join(narrow)}: small steps are rounded away",
                "nk.convert(model, 'batch'), whose layers keep them float32, or layer.float()",
                measured=16,
                limit=32,
                unit="bits",
            )


def sick() -> Example:
    model = small_net()
    model[4].to(torch.bfloat16)
    return model.train(), None


def healthy() -> Example:
    return small_net().train(), None
