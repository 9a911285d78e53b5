"""requires_grad is off while the statistics move.

What it checks: in a model that trains, a norm in training mode whose gamma and beta take no gradient.

Why: requires_grad_(False) freezes parameters, not buffers: every training forward moves the running statistics, and
the "frozen" layers drift to the new data while their gamma and beta stay. After 44 batches 99 % of the old statistics
are gone.

Ignore it: where the statistics should follow the new data and the parameters should not (AdaBN). A warning in a model
that trains. A teacher, whose parameters are another part's average, is NK408's.

Sources: Li et al. 2017 (AdaBN), https://arxiv.org/abs/1603.04779; docs/surgery.md
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

CODE, WHERE = "NK402", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        off = bool(norm.trainable) and not any(norm.trainable.values())
        averaged = any(norm.name.startswith(f"{teacher}.") for teacher in evidence.state.teachers)  # NK408's
        if off and not averaged and norm.tracked and norm.fixed is None and norm.training and evidence.state.trains:
            yield make(
                CODE,
                norm.where,
                evidence.in_training(norm),
                "gamma and beta take no gradient, and every training forward moves its statistics",
                f"nk.freeze(model, only={norm.name!r})",
            )


def sick() -> Example:
    model = small_net().train()
    model[4].requires_grad_(False)
    return model, images()


def healthy() -> Example:
    return small_net().train(), images()
