"""Frozen by track_running_stats=False, but using batch statistics in training.

What it checks: a batch norm that has running statistics and track_running_stats=False.

Why: in training such a layer normalizes by the batch and moves nothing; in evaluation it uses the old statistics. It
looks frozen, and its outputs in training are those of a layer that is not. Lightning's BaseFinetuning.freeze does
this.

Ignore it: in a model that is only evaluated: a note. A warning in one that trains.

Sources: Lightning's BaseFinetuning; torch/nn/modules/batchnorm.py, forward
"""

from __future__ import annotations

from collections.abc import Iterator

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

CODE, WHERE = "NK401", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.tracks is False and norm.tracked and norm.family in BATCH_FAMILIES:
            yield make(
                CODE,
                norm.where,
                evidence.in_training(norm),
                "track_running_stats is off: training uses the batch's statistics, evaluation the old ones",
                f"nk.freeze(model, only={norm.name!r})",
            )


def sick() -> Example:
    model = small_net()
    model[4].track_running_stats = False
    return model.train(), images()


def healthy() -> Example:
    return small_net().train(), images()
