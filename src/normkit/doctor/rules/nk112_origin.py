"""Statistics and weights are of different origin.

What it checks: a file or an averaged model (EMA, SWA) in which gamma and beta differ from the live model's, and the
running statistics are the live model's bit for bit.

Why: averaged weights make other activations than the live ones. Statistics that were gathered under the live weights
do not fit them; torch's AveragedModel copies buffers by default, which is why it comes with update_bn.

Ignore it: where the statistics are recomputed before use. A note: how far they are off the batches tell (NK103).

Sources: Izmailov et al. 2018 (SWA), https://arxiv.org/abs/1803.05407, section 3.2: "one additional pass over the
data"
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from ..evidence import Evidence
from ..examples import Example, small_net
from ..finding import Finding, make

CODE, WHERE = "NK112", "ema: 4"


def check(evidence: Evidence) -> Iterator[Finding]:
    state = evidence.state
    if state.averaged and state.training is not True and not _settled(evidence):
        yield make(
            CODE,
            "",
            "note",
            f"an average of {state.averaged} models: its statistics are the last one's, or averages of theirs",
            "nk.recalibrate(averaged_model, batches)",
            measured=state.averaged,
            limit=1,
            unit="models",
        )
    copies = state.copies
    for first, second in combinations(copies, 2):
        others = {norm.name: norm for norm in evidence.state.of_copy(first)}
        for norm in evidence.state.of_copy(second):
            other = others.get(norm.name)
            if other is None or norm.at_start or not (_same(norm.mean, other.mean) and _same(norm.var, other.var)):
                continue
            if norm.weight is not None and not (_same(norm.weight, other.weight) and _same(norm.bias, other.bias)):
                yield make(
                    CODE,
                    norm.where,
                    "note",
                    f"gamma and beta differ from those of {first!r}, the running statistics are the same bits",
                    "nk.recalibrate(averaged_model, batches)",
                )


def _settled(evidence: Evidence) -> bool:
    """Whether batches have shown that the statistics are the weights' own, or there are none."""
    runs = [evidence.measured(norm) for norm in evidence.norms if norm.tracked]
    return all(run is not None and not run.far for run in runs)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def sick() -> Example:
    state = small_net().state_dict()
    averaged = {key: value * 0.99 if key.endswith("weight") else value for key, value in state.items()}
    return {"model": state, "ema": averaged}, None


def healthy() -> Example:
    state = small_net().state_dict()
    averaged = {key: value * 0.99 if value.is_floating_point() else value for key, value in state.items()}
    return {"model": state, "ema": averaged}, None
