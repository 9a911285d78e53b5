"""Not folded.

What it checks: in a model in evaluation mode, batch norms that a convolution or linear layer alone feeds.

Why: such a norm is a scale and a shift per channel that the layer before can take over: one pass over memory less for
each, and the same numbers to rounding.

Ignore it: always a note; while the model is still to be trained, leave it as it is.

Sources: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2; docs/surgery.md
"""

from __future__ import annotations

from collections.abc import Iterator

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make
from ..state import NormState

LINEAR = frozenset(("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear"))

CODE, WHERE = "NK501", ""


def check(evidence: Evidence) -> Iterator[Finding]:
    if evidence.state.training is not False:
        return
    found = [norm.name for norm in evidence.norms if norm.family in BATCH_FAMILIES and folds(evidence, norm)]
    if found:
        yield make(
            CODE,
            "",
            "note",
            f"{len(found)} batch norms can be folded into the layers before them, as {found[0]}",
            "nk.fold(model, example_inputs)",
            measured=len(found),
            limit=0,
            unit="norms",
        )


def folds(evidence: Evidence, norm: NormState) -> bool:
    """Whether a convolution or linear layer makes the norm's input, for the norm alone."""
    source, calls = evidence.fed_by(norm), evidence.calls(norm)
    if source is None or evidence.forward is None or evidence.forward.flow is None or len(calls) != 1:
        return False
    alone = len(evidence.forward.flow.consumers(calls[0].inputs[0])) == 1
    return alone and source.op in LINEAR and len(evidence.forward.flow.calls_of(source.module or "")) == 1


def sick() -> Example:
    return small_net(), images()


def healthy() -> Example:
    return small_net().train(), images()
