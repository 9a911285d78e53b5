"""Momentum is given in another framework's direction.

What it checks: momentum of 0.9 and more.

Why: in PyTorch momentum is the weight of the new batch: running = (1 - momentum) running + momentum batch. Keras,
Flax, TensorFlow and Caffe write the weight of the old value. Their 0.99 brought over as it is makes the running
statistics those of the last batch: nothing is averaged, and evaluation is as noisy as a single batch.

Ignore it: where the statistics have been settled by other means (recalibrated, ported): a note. In a model that
trains it is a warning, since the next step moves them.

Sources: https://keras.io/api/layers/normalization_layers/batch_normalization/; the page of torch.nn.BatchNorm2d
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

LIMIT = 0.9

CODE, WHERE = "NK105", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.tracked and norm.momentum is not None and norm.momentum >= LIMIT and not norm.fixed:
            run = evidence.measured(norm)
            fits = run is not None and not run.far
            yield make(
                CODE,
                norm.where,
                "note" if fits else evidence.severity(norm, evidence.in_training(norm)),
                f"momentum {norm.momentum:g} is the weight of the newest batch here: little of the others is kept",
                f"layer.momentum = {1 - norm.momentum:.3g}",
                measured=norm.momentum,
                limit=LIMIT,
                unit="weight of the newest batch",
            )


def sick() -> Example:
    model = small_net()
    model[4].momentum = 0.99
    return model, images()


def healthy() -> Example:
    return small_net(), images()
