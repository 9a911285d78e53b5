"""Dead channels.

What it checks: channels with gamma 0, channels whose input never varies, and channels that never come through the
ReLU after the norm.

Why: such a channel hands on a constant. It costs what a living one costs and carries nothing; with gamma exactly 0
the channel's weights get no gradient either.

Ignore it: always a note. A whole layer with gamma 0 is a residual branch that begins at 0 (Goyal et al. 2017); pruned
networks have dead channels on purpose, and a few batches may not wake a rare one.

Sources: Goyal et al. 2017, https://arxiv.org/abs/1706.02677; Liu et al. 2017 (network slimming),
https://arxiv.org/abs/1708.06519
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make
from ..state import NormState

RELUS = frozenset(("relu", "relu_"))

CODE, WHERE = "NK301", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        dead = _dead(evidence, norm)
        if dead is not None and dead.any():
            count, size = int(dead.sum()), dead.numel()
            whole = "all channels: a branch that begins at 0" if count == size else f"{count} of {size} channels"
            yield make(
                CODE,
                norm.where,
                "note",
                f"{whole} hand on a constant",
                "prune them, or leave them",
                measured=count / size,
                limit=0,
                unit="share of the channels",
            )


def _dead(evidence: Evidence, norm: NormState) -> Tensor | None:
    """(C,) bool: gamma is 0, the data's variance is 0, or a ReLU lets nothing through; None where nothing is known."""
    found = [] if norm.weight is None or norm.weight.dim() != 1 else [norm.weight == 0]
    run = evidence.run(norm)
    if run is not None:
        if run.var is not None:
            found.append(run.var == 0)
        consumers = [call.op.lower() for call in evidence.feeds(norm)]
        if run.traffic.high is not None and consumers and all(op in RELUS for op in consumers):
            found.append(run.traffic.high.cpu() <= 0)
    sizes = {tensor.numel() for tensor in found}
    return torch.stack(found).any(0) if len(sizes) == 1 else None


def sick() -> Example:
    model = small_net()
    with torch.no_grad():
        model[4].weight[:3] = 0
    return model, images()


def healthy() -> Example:
    return small_net(), images()
