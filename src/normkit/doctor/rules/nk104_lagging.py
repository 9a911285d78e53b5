"""The running statistics lag behind: too few steps for their momentum.

What it checks: (1 - momentum)^n, the weight that the initial 0 and 1 still have after n counted batches, above 0.05;
with batches only where the statistics are in fact off.

Why: each batch makes running = (1 - momentum) running + momentum batch. With momentum 0.1 half of the start is gone
after 7 batches and 99 % after 44; with 0.001 after 200 batches 82 % of the statistics are still the 0 and 1 of a new
layer. With momentum 0, which converters of networks write, no batch ever counts.

Ignore it: where a counter was reset or carried over with other statistics (ported weights, recalibrated models); it
is a note unless the answer changes by more than batches differ.

Sources: Ioffe & Szegedy 2015; https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html (the direction
of momentum)
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

LEFT = 0.05

CODE, WHERE = "NK104", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if not norm.tracked or norm.fixed or norm.momentum is None or not norm.counter or norm.at_start:
            continue
        left = (1 - min(norm.momentum, 1.0)) ** norm.counter
        run = evidence.measured(norm)
        if left <= LEFT or (run is not None and not run.far):
            continue
        yield make(
            CODE,
            norm.where,
            evidence.severity(norm),
            f"with momentum {norm.momentum:g}, {norm.counter:.0f} batches leave {left:.0%} of "
            + ("the initial 0 and 1" if norm.momentum else "what was there before them"),
            f"nk.recalibrate(model, batches, only={norm.name!r})",
            measured=left,
            limit=LEFT,
            unit="share of the initial values",
        )


def sick() -> Example:
    model = small_net()
    bn, exact = model[4], model[4].running_var.clone()
    bn.momentum, left = 0.001, 0.999**200
    bn.num_batches_tracked.fill_(200)
    bn.running_mean.mul_(1 - left)
    bn.running_var.copy_(left * 1 + (1 - left) * exact)
    return model, images()


def healthy() -> Example:
    return small_net(), images()
