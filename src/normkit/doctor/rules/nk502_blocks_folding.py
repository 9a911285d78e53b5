"""What blocks folding.

What it checks: in a model in evaluation mode, batch norms whose input is a sum, an activation's output or another
layer's output that others read too.

Why: a norm folds only into a linear layer next to it. After an addition or an activation it stays a pass over memory
of its own in every evaluation.

Ignore it: always a note. Pre-activation networks (ResNet v2, DenseNet) are built this way.

Sources: He et al. 2016, https://arxiv.org/abs/1603.05027; docs/surgery.md
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, images, settled, small_net
from ..finding import Finding, make
from .nk501_not_folded import folds

CODE, WHERE = "NK502", ""


def check(evidence: Evidence) -> Iterator[Finding]:
    if evidence.state.training is not False:
        return
    norms = [norm for norm in evidence.norms if norm.family in BATCH_FAMILIES and evidence.calls(norm)]
    blocked = [(norm, evidence.fed_by(norm)) for norm in norms if not folds(evidence, norm)]
    if blocked:
        norm, source = blocked[0]
        by = "the model's input" if source is None else source.module or source.op
        yield make(
            CODE,
            "",
            "note",
            f"{len(blocked)} of {len(norms)} batch norms cannot be folded, as {norm.name}, which {by} feeds",
            "nk.accelerate(model, example_inputs) makes them cheaper",
            measured=len(blocked),
            limit=0,
            unit="norms",
        )


def sick() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    return settled(model, images()), images()


def healthy() -> Example:
    return small_net(), images()
