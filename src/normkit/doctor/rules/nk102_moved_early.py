"""The statistics moved before the first optimizer step.

What it checks: a few batches (at most 10) have been counted, and no gamma or beta of the whole model has left 1 and
0; with an optimizer, it has made no step.

Why: forwards in training mode that only look at shapes (a stride probe, a summary, a warm-up) move running
statistics. The first dummy image of zeros gives a variance of 0, of which the running variance takes a tenth at once.
The statistics then start from data that the model never sees; in training they forget it at the rate of momentum.

Ignore it: where the statistics were settled on purpose before training (data-dependent initialization). A note.

Sources: ultralytics#18149; yolov10#547
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..evidence import Evidence
from ..examples import Example, images
from ..finding import Finding, make

FEW = 10
CODE, WHERE = "NK102", "1"


def check(evidence: Evidence) -> Iterator[Finding]:
    norms = [norm for norm in evidence.norms if norm.tracked and norm.fixed is None]
    untouched = all(norm.affine_at_start for norm in norms) and any(norm.weight is not None for norm in norms)
    if evidence.state.stepped or not untouched:
        return
    for norm in norms:
        if norm.counter and norm.counter <= FEW and not norm.at_start:
            yield make(
                CODE,
                norm.where,
                "note",
                f"{norm.counter:.0f} batches moved its statistics, and no gamma or beta of the model has been trained",
                "nn.BatchNorm2d.reset_running_stats(layer) before training; look at shapes in eval mode",
                measured=norm.counter,
                limit=0,
                unit="batches",
            )


def sick() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model(torch.zeros(1, 3, 8, 8))  # "which shape comes out?", in training mode
    return model, images()


def healthy() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    model.eval()(torch.zeros(1, 3, 8, 8))
    return model.train(), images()
