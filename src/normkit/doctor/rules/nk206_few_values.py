"""Too few values per channel.

What it checks: in a model that trains, fewer than 16 values per channel in a call of a batch norm (batch times
space), or a batch that training refuses.

Why: the relative standard error of a variance from m values is sqrt(2 / m): 35 % at 16, 100 % at 2. With 2 values per
channel every normalized value is +1 or -1, whatever it was. Ghost, accumulated and per-rank batches count each for
itself.

Ignore it: where training uses larger batches than those given here, or another norm's noise is wanted. A warning in a
model that trains; in evaluation no batch's statistics are used.

Sources: Wu & He 2018, https://arxiv.org/abs/1803.08494, figure 1; Wu & Johnson 2021, https://arxiv.org/abs/2105.07576
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, images, settled
from ..finding import Finding, make

LIMIT = 16

CODE, WHERE = "NK206", "2"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        run = evidence.run(norm)
        if run is None or not run.traffic.shape or norm.family not in BATCH_FAMILIES or norm.fixed:
            continue
        if evidence.state.trains and norm.training is not False and run.traffic.values < LIMIT:
            yield make(
                CODE,
                norm.where,
                evidence.in_training(norm),
                f"{run.traffic.values} values per channel in a call: its variance is off by "
                f"{math.sqrt(2 / run.traffic.values):.0%} (one standard error)",
                'larger batches, nk.deferred_statistics, nk.convert(model, "sync"), or nk.convert(model, "group")',
                measured=run.traffic.values,
                limit=LIMIT,
                unit="values per channel",
            )


def sick() -> Example:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    return settled(model, images()).train(), images(batches=64, size=2)


def healthy() -> Example:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    return settled(model, images()).train(), images()
