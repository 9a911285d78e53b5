"""A group norm of one channel a group.

What it checks: num_groups equal to the number of channels.

Why: it is an instance norm: each channel of each sample is normalized alone, so that nothing later knows how strong a
channel was. Wu & He found 16 channels a group to do best and one to cost 0.5 points on ImageNet.

Ignore it: always a note. wav2vec 2.0 and style transfer do it on purpose.

Sources: Wu & He 2018, https://arxiv.org/abs/1803.08494, table 3
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled
from ..finding import Finding, make

CODE, WHERE = "NK205", "1"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.groups and norm.groups > 1 and norm.weight is not None and norm.groups == norm.weight.numel():
            yield make(
                CODE,
                norm.where,
                "note",
                f"{norm.groups} groups for {norm.groups} channels: it is an instance norm",
                f"nn.GroupNorm({max(1, norm.groups // 16)}, {norm.groups})",
                measured=1,
                limit=1,
                unit="channels per group",
            )


def sick() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(32, 32), nn.ReLU())
    return settled(model, images()), images()


def healthy() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(2, 32), nn.ReLU())
    return settled(model, images()), images()
