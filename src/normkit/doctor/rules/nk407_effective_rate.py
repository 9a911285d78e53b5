"""The effective learning rate of scale-invariant weights is out of range.

What it checks: for each convolution or linear layer without bias that feeds a norm alone, the optimizer's rate over
the squared norm of one output channel's weights, against the median over all such layers: more than 1,000 times
apart.

Why: a norm makes its layer's output independent of the weights' scale, so a step of rate lr turns the weights by lr /
|w|^2 times the gradient at |w| = 1. Without weight decay |w| only grows and the layer's learning ends by itself; with
too much it shrinks until steps are wild.

Ignore it: with optimizers that scale their steps to the weights (LARS, LAMB), and for layers of their own rate. A
note.

Sources: van Laarhoven 2017, https://arxiv.org/abs/1706.05350; Hoffer et al. 2018, https://arxiv.org/abs/1803.01814
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import nn

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, images, settled, small_net
from ..finding import Finding, make

LIMIT = 1000.0

CODE, WHERE = "NK407", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    rates = evidence.state.rates
    found = [(norm, str(source.module)) for norm in evidence.norms if (source := evidence.fed_by(norm)) is not None]
    effective = {norm: rates[name] for norm, name in found if name in rates and norm.family in BATCH_FAMILIES}
    if len(effective) < 2:
        return
    usual = median(effective.values())
    for norm, rate in effective.items():
        if usual > 0 and not 1 / LIMIT <= rate / usual <= LIMIT:
            yield make(
                CODE,
                norm.where,
                "note",
                f"the weights before it turn {rate / usual:.2g} times as fast as the median layer's (lr / |w|^2)",
                "weight decay on these weights, or a rate of their own",
                measured=rate / usual,
                limit=LIMIT if rate > usual else 1 / LIMIT,
                unit="of the median effective rate",
            )


def sick() -> Example:
    layers: list[Any] = []
    for i in range(3):
        layers += [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers[3].weight.data.mul_(50)  # grown, since nothing decays it
    model = settled(nn.Sequential(*layers), images()).train()
    return model, images(), {"optimizer": torch.optim.SGD(model.parameters(), 0.1)}


def healthy() -> Example:
    model = small_net().train()
    return model, images(), {"optimizer": torch.optim.SGD(model.parameters(), 0.1)}
