"""A bias in front of a norm that removes it.

What it checks: by the dataflow, a convolution or linear layer with a bias whose output goes straight into a batch or
instance norm, or a group norm of one channel a group.

Why: the norm subtracts the channel's mean, and the bias with it: it changes nothing, gets no gradient but rounding,
and costs memory and time. Weight decay pulls it to 0.

Ignore it: always a note. In evaluation the bias does count against running_mean, so it may not simply be set to 0.

Sources: Ioffe & Szegedy 2015, section 3.2
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, images, settled
from ..finding import Finding, make
from ..state import NormState

CODE, WHERE = "NK201", "1"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        removes = norm.family in (*BATCH_FAMILIES, "instance") or (norm.groups and norm.groups == _channels(norm))
        source = evidence.fed_by(norm)
        if removes and source is not None and source.module in evidence.state.biased:
            yield make(
                CODE,
                norm.where,
                "note",
                f"{source.module} has a bias, which this norm subtracts again",
                f"bias=False in {source.module}, before training",
            )


def _channels(norm: NormState) -> int | None:
    return None if norm.weight is None else norm.weight.numel()


def sick() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return settled(model, images()), images()


def healthy() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return settled(model, images()), images()
