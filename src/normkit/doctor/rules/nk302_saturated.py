"""Saturated units after a norm.

What it checks: a sigmoid or tanh that reads a norm's output, with more than half of its inputs beyond 4.

Why: the derivative of the sigmoid at 4 is 0.018, of tanh 0.0013: no gradient comes through, and small differences of
the input are gone. A norm with gamma 1 and beta 0 puts 0.006 % there; a large gamma or beta puts all of it there.

Ignore it: always a note. Gates are meant to be open or closed.

Sources: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html; Ioffe & Szegedy 2015, section 1
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled
from ..finding import Finding, make

LIMIT = 0.5
SQUASHING = frozenset(("sigmoid", "tanh", "sigmoid_", "tanh_"))

CODE, WHERE = "NK302", "1"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        run = evidence.run(norm)
        consumers = {call.op.lower() for call in evidence.feeds(norm)}
        if run is not None and consumers & SQUASHING and run.traffic.saturated > LIMIT:
            yield make(
                CODE,
                norm.where,
                "note",
                f"{run.traffic.saturated:.0%} of what {', '.join(sorted(consumers & SQUASHING))} reads is beyond 4",
                "a smaller gamma, or weight decay on it",
                measured=run.traffic.saturated,
                limit=LIMIT,
                unit="share of the units",
            )


def sick() -> Example:
    model = settled(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Sigmoid()), images())
    with torch.no_grad():
        model[1].weight.fill_(20)
    return model, images()


def healthy() -> Example:
    return settled(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Sigmoid()), images()), images()
