"""One norm is shared by different inputs.

What it checks: a norm with running statistics that is called several times per forward, and how far the inputs of
these calls are from each other, in their own standard deviations.

Why: in training every call uses its own batch's statistics; the running ones become a mixture of all, in which no
call is at home. Two inputs of deviations 1 and 3 are evaluated with one variance of about 5.

Ignore it: where the inputs are alike, or the mixture is wanted (heads over several levels that were trained shared).
A note, unless the answer changes by more than batches differ; group and layer norms have no statistics to mix.

Sources: Singh & Shrivastava 2019; separate statistics per level or domain: Xie et al. 2020 (AdvProp),
https://arxiv.org/abs/1911.09665; Li et al. 2017 (AdaBN), https://arxiv.org/abs/1603.04779
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..evidence import Evidence
from ..examples import Example, images, settled
from ..finding import Finding, make

LIMIT = 0.5

CODE, WHERE = "NK110", "bn"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        run = evidence.measured(norm)
        if run is not None and run.traffic.calls > 1 and run.between > LIMIT:
            yield make(
                CODE,
                norm.where,
                evidence.severity(norm),
                f"{run.traffic.calls} calls per forward share its statistics, and their inputs differ",
                "give each input a norm of its own",
                measured=run.between,
                limit=LIMIT,
                unit="standard deviations between the inputs",
            )


def sick() -> Example:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) + self.bn(3 * x + 2)

    return settled(Shared(), images()), images()


def healthy() -> Example:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) + self.bn(x.flip(3))

    return settled(Shared(), images()), images()
