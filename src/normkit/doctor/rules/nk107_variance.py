"""A running variance that is negative, zero or subnormal.

What it checks: running_var below 0, equal to 0, or below the smallest normal number of float32 (1.2e-38).

Why: a negative variance is none; once it is beyond eps the layer divides by the root of a negative number and gives
NaN. It comes from averages in low precision, from subtraction (model soups, task vectors) or from a damaged file. A
variance of 0 makes the layer multiply what it did not see in training by 1 / sqrt(eps): 316 with eps 1e-5.

Ignore it: zero and subnormal variances are notes: a channel that is always the same (a dead filter) has variance 0,
and trained, published networks have some. Batches tell whether such a channel is alive: where it stands still in the
data too, nothing is said. Negative ones are errors.

Sources: timm's and torchvision's published checkpoints hold variances of 1e-45 and of 0
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make
from ..forward import SCREEN
from ..state import NormState

SMALLEST = 1.1754944e-38

CODE, WHERE = "NK107", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.var is None:
            continue
        negative = int((norm.var < 0).sum())
        tiny = int(((norm.var >= 0) & (norm.var < SMALLEST) & _alive(evidence, norm)).sum())
        if negative:
            yield make(
                CODE,
                norm.where,
                "error",
                f"running_var is negative in {negative} of {norm.var.numel()} channels",
                f"nk.recalibrate(model, batches, only={norm.name!r})",
                measured=float(norm.var.min()),
                limit=0,
                unit="running_var",
            )
        elif tiny:
            yield make(
                CODE,
                norm.where,
                evidence.severity(norm),
                f"running_var is zero or subnormal in {tiny} of {norm.var.numel()} channels: "
                "what comes through them is multiplied by 1 / sqrt(eps)",
                f"nk.recalibrate(model, batches, only={norm.name!r}) if the channels are alive",
                measured=float(norm.var.min()),
                limit=SMALLEST,
                unit="running_var",
            )


def _alive(evidence: Evidence, norm: NormState) -> Tensor:
    """(C,) bool: the channels of which batches do not show that they stand still where the statistics say so."""
    assert norm.var is not None
    run = evidence.measured(norm)
    if run is None or run.distance is None:
        return torch.ones_like(norm.var, dtype=torch.bool)
    return ~(run.distance <= SCREEN)  # one that is no number is not known to


def sick() -> Example:
    model = small_net()
    model[4].running_var[3] = -0.25
    return model, images()


def healthy() -> Example:
    return small_net(), images()
