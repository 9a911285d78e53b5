"""Batch norm on several processes, not synchronised, with small batches.

What it checks: a model inside DistributedDataParallel with batch norms that are no SyncBatchNorm, and fewer than 16
samples per process in a batch.

Why: each process normalizes by its own samples. Adding processes makes the whole batch larger and leaves these
statistics as noisy as before: Wu & He's ResNet-50 loses 1 point of accuracy at 8 samples a process, 3 at 4 and 11 at
2. The running statistics that are saved are those of rank 0 alone.

Ignore it: where the noise is wanted, or norms are frozen. A warning in a model that trains.

Sources: Wu & He 2018, https://arxiv.org/abs/1803.08494, table 2; Peng et al. 2018 (MegDet),
https://arxiv.org/abs/1711.07240
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, replicated, small_net
from ..finding import Finding, make

LIMIT = 16

CODE, WHERE = "NK405", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.state.replicated:
        return
    for norm in evidence.norms:
        run = evidence.run(norm)
        if run is None or not run.traffic.shape or norm.family != "batch" or norm.fixed or not norm.training:
            continue
        if run.traffic.shape[0] < LIMIT:
            yield make(
                CODE,
                norm.where,
                evidence.in_training(norm),
                f"{run.traffic.shape[0]} samples per process make its statistics, whatever the number of processes",
                'nk.convert(model, "sync")',
                measured=run.traffic.shape[0],
                limit=LIMIT,
                unit="samples per process",
            )


def sick() -> Example:
    return replicated(small_net().train()), images(batches=32, size=4)


def healthy() -> Example:
    return replicated(small_net().train()), images()
