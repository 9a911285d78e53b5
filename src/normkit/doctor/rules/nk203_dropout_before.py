"""Dropout in front of a batch norm.

What it checks: by the dataflow, a dropout (p > 0) whose output a norm with running statistics reads, directly or
after one layer.

Why: dropout keeps the mean and changes the variance: in training E[x^2] grows by 1 / (1 - p), in evaluation it does
not. running_var is the training's: with p = 0.5 and mean 0 twice what evaluation shows, so that its outputs come out
at 0.71 of their scale.

Ignore it: where p is small, or the statistics were recalibrated, which runs without dropout. A note; NK103 says how
far the statistics are off.

Sources: Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift,
https://arxiv.org/abs/1801.05134
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled
from ..finding import Finding, make

CODE, WHERE = "NK203", "2"


def check(evidence: Evidence) -> Iterator[Finding]:
    flow = None if evidence.forward is None else evidence.forward.flow
    if flow is None:
        return
    dropped = {  # in evaluation a dropout hands its input on: the value is its producer's
        value: call.module for call in flow.calls if call.module in evidence.state.dropouts for value in call.outputs
    }
    for norm in evidence.norms:
        calls = evidence.calls(norm)
        if not norm.tracked or norm.fixed or not calls or not calls[0].inputs:
            continue
        source = evidence.fed_by(norm)
        near = [calls[0].inputs[0], *(source.inputs[:1] if source is not None else ())]
        name = next((dropped[value] for value in near if value in dropped), None)
        if name is not None:
            p = evidence.state.dropouts[name]
            yield make(
                CODE,
                norm.where,
                "note",
                f"{name} (p = {p:g}) is before it: training shows up to {1 / max(1 - p, 1e-9):.2g} times the variance",
                "nk.recalibrate(model, batches) after training, or dropout after the last norm",
                measured=p,
                limit=0,
                unit="p",
            )


def sick() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Dropout(0.5), nn.BatchNorm2d(8), nn.ReLU())
    return settled(model, images()), images()


def healthy() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    return settled(model, images()), images()
