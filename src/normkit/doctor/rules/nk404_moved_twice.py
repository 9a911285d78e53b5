"""The statistics move twice a step: activation checkpointing.

What it checks: on a copy, whether the backward of one training step moves a norm's counter again.

Why: checkpointing runs the forward a second time inside of the backward, and torch's layers take that for a new
batch. With momentum 0.1 the statistics move by 0.19 a step, so that they forget twice as fast and are noisier; a
counter that counts double misleads what reads it.

Ignore it: never much harm, and never wanted. A warning in a model that trains. normkit's layers know a recomputation.

Sources: pytorch#96136, pytorch#62471
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

CODE, WHERE = "NK404", "body.4"


def check(evidence: Evidence) -> Iterator[Finding]:
    steps = {} if evidence.training is None else evidence.training.norms
    for norm in evidence.norms:
        step = steps.get(norm.name)
        if step is not None and step.moved_in_backward > 0:
            yield make(
                CODE,
                norm.where,
                evidence.in_training(norm),
                f"one step moves its statistics {step.moves} times, {step.moved_in_backward} of them in the backward",
                'nk.convert(model, "batch"): its layers know a recomputation',
                measured=step.moves,
                limit=step.moves - step.moved_in_backward,
                unit="moves per step",
            )


def sick() -> Example:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = small_net()[:6], nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.body, x, use_reentrant=False))

    return Checkpointed().train(), images()


def healthy() -> Example:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = small_net()[:6], nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    return Plain().train(), images()
