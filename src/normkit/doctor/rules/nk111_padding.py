"""Padding enters the statistics.

What it checks: constant positions at the end of an axis, of a length that differs between samples, that make at least
5 % of a norm's input and move its mean and deviation by more than 0.1 standard deviations.

Why: a batch norm takes every position for a value. Where half of the positions are padding, mean and variance are
those of a mixture with a constant, and a sample's output depends on how much its neighbours were padded. A mask keeps
padding out.

Ignore it: where the ends are real silence or real borders, or evaluation pads as training did. A note.

Sources: pytorch#70529, pytorch#81985, pytorch#25910
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ...model.families import BATCH_FAMILIES
from ...statistics.distance import distance
from ..evidence import Evidence
from ..examples import Example, settled
from ..finding import Finding, make
from ..forward import SCREEN, UNIT

CODE, WHERE = "NK111", "0"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        run = evidence.run(norm)
        tail = None if run is None else run.traffic.tail
        if tail is None or norm.family not in BATCH_FAMILIES:
            continue
        apart = distance(tail.mean, tail.var, tail.kept_mean, tail.kept_var, norm.eps or 0.0)
        size = float(apart.square().mean().sqrt())
        if size > SCREEN:
            yield make(
                CODE,
                norm.where,
                "note",
                f"{tail.share:.0%} of axis {tail.axis} is a constant end: padding moves the statistics",
                "nk.BatchNorm1d with norm(x, mask=nk.mask_from_lengths(lengths))",
                measured=size,
                limit=SCREEN,
                unit=UNIT,
            )


def sick() -> Example:
    words = [torch.randn(16, 8, 40, generator=torch.Generator().manual_seed(i)) + 1 for i in range(4)]
    for batch in words:
        for row, length in enumerate(range(5, 37, 2)):
            batch[row, :, length:] = 0  # padded to the longest
    return settled(nn.Sequential(nn.BatchNorm1d(8)), words), words


def healthy() -> Example:
    words = [torch.randn(16, 8, 40, generator=torch.Generator().manual_seed(i)) + 1 for i in range(4)]
    return settled(nn.Sequential(nn.BatchNorm1d(8)), words), words
