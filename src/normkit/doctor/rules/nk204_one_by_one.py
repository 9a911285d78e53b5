"""A norm on a 1x1 map.

What it checks: an input (N, C, 1, 1) or (N, C, 1).

Why: a batch norm has then one value per channel and sample: its statistics are those of N numbers, and in training a
batch of 1 raises. An instance norm's output is 0 for every input; a group norm mixes the channels of a group only.

Ignore it: always a note. Selective kernels and squeeze-and-excite blocks do it on purpose.

Sources: Li et al. 2019 (SKNet), https://arxiv.org/abs/1903.06586
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled, small_net
from ..finding import Finding, make

CODE, WHERE = "NK204", "2"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        run = evidence.run(norm)
        shape = () if run is None else run.traffic.shape
        if len(shape) > 2 and math.prod(shape[2:]) == 1 and norm.family not in ("layer", "rms"):
            yield make(
                CODE,
                norm.where,
                "note",
                f"its input has shape {tuple(shape)}: one value per channel and sample",
                "normalize before the pooling, or leave the norm out",
                measured=1,
                limit=1,
                unit="values per channel and sample",
            )


def sick() -> Example:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return settled(model, images()), images()


def healthy() -> Example:
    return small_net(), images()
