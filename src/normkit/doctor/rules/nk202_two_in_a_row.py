"""Two norms in a row.

What it checks: by the dataflow, a norm whose input another norm made.

Why: the second one normalizes what is normalized: where both work on the same axes, only its gamma and beta and the
first one's relative gammas remain.

Ignore it: always a note. CLIP, and blocks that normalize before and after, do it on purpose.

Sources: Xiong et al. 2020, https://arxiv.org/abs/2002.04745, for pre- and post-norm blocks
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled, small_net
from ..finding import Finding, make

CODE, WHERE = "NK202", "2"


def check(evidence: Evidence) -> Iterator[Finding]:
    names = {norm.name for norm in evidence.norms}
    for norm in evidence.norms:
        source = evidence.fed_by(norm)
        if source is not None and source.module in names and source.module != norm.name:
            yield make(
                CODE, norm.where, "note", f"its input comes straight from {source.module}, a norm too", "leave one out"
            )


def sick() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.BatchNorm2d(8))
    return settled(model, images()), images()


def healthy() -> Example:
    return small_net(), images()
