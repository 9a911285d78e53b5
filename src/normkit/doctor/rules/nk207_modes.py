"""Norms in another mode than the model.

What it checks: batch norms in training mode inside a model in evaluation mode, and the reverse.

Why: a norm in training mode normalizes by the batch even in evaluation: an answer depends on what else is in the
batch, and every evaluation moves the running statistics. The reverse, evaluation inside a training model, freezes the
statistics; that is often meant.

Ignore it: eval-mode norms in a training model are a note; freeze them (nk.freeze) so that the next train() does not
wake them. A training-mode norm in an evaluated model is an error where its batches' statistics change the answer by
more than 0.05 of its deviation, else a note; without batches a warning. Where test-time adaptation is meant, nk.adapt
does it without moving statistics.

Sources: pytorch#4741, pytorch#100048
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...model.families import BATCH_FAMILIES
from ..blame import FELT
from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, Severity, make
from ..state import NormState

CODE, WHERE = "NK207", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.family not in BATCH_FAMILIES - {"frozen"} or norm.training in (None, evidence.state.training):
            continue
        if norm.tracks is False or not norm.tracked:
            continue
        training = bool(norm.training)
        yield make(
            CODE,
            norm.where,
            _severity(evidence, norm) if training else "note",
            "it is in training mode inside a model in evaluation mode: answers depend on the batch, statistics move"
            if training
            else "it is in evaluation mode inside a training model: the next train() wakes it",
            "model.eval()" if training else f"nk.freeze(model, only={norm.name!r})",
            **_felt(evidence, norm),
        )


def _severity(evidence: Evidence, norm: NormState) -> Severity:
    run = evidence.run(norm)
    if run is None or run.by_batch is None:
        return "warning" if evidence.forward is None else "note"
    return "error" if run.by_batch > FELT else "note"


def _felt(evidence: Evidence, norm: NormState) -> dict[str, Any]:
    run = evidence.run(norm)
    if run is None or run.by_batch is None:
        return {}
    return {"measured": run.by_batch, "limit": FELT, "unit": "of the answer's deviation, by single batches"}


def sick() -> Example:
    model = small_net()
    model[4].train()
    return model, images()


def healthy() -> Example:
    return small_net(), images()
