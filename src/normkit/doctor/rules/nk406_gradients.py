"""Gradients explode or vanish through the norms.

What it checks: on a copy, one training step: the root mean square of the gradient at the output of the first and of
the last norm, in the order of the calls; a ratio above 1,000 or below 1 / 1,000.

Why: batch norm in a deep chain without skips makes gradients grow by about 1.2 a layer at the start, whatever the
weights' scale: a thousandfold after 38 layers. Layers that get a thousand times the gradient of others cannot share a
learning rate.

Ignore it: with residual connections, warm-up or an adaptive optimizer. A note.

Sources: Yang et al. 2019, A Mean Field Theory of Batch Normalization, https://arxiv.org/abs/1902.08129
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled, small_net
from ..finding import Finding, make

LIMIT = 1000.0

CODE, WHERE = "NK406", "2"


def check(evidence: Evidence) -> Iterator[Finding]:
    if evidence.training is None or evidence.forward is None:
        return
    runs = evidence.forward.norms
    seen = [
        (runs[name].traffic.order, name, step.gradient)
        for name, step in evidence.training.norms.items()
        if step.gradient is not None and name in runs and runs[name].traffic.order >= 0
    ]
    seen.sort()
    if len(seen) < 2 or not seen[0][2] or not seen[-1][2]:
        return
    ratio = seen[0][2] / seen[-1][2]
    if not 1 / LIMIT <= ratio <= LIMIT:
        yield make(
            CODE,
            seen[0][1],
            "note",
            f"its gradient is {ratio:.2g} times that of {seen[-1][1]}, the last norm",
            "skip connections, a warm-up, or fewer layers in a chain",
            measured=ratio,
            limit=LIMIT if ratio > 1 else 1 / LIMIT,
            unit="ratio of gradients",
        )


def sick() -> Example:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(192, 32)]
    for _ in range(60):
        layers += [nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32)]
    return settled(nn.Sequential(*layers), images()).train(), images(size=64)


def healthy() -> Example:
    return small_net().train(), images()
