"""Batch norm in a contrastive or teacher pair.

What it checks: in a model that trains, a part without gradients that is a copy or an average of another part (a
teacher, a momentum encoder), with batch norms that use their batches' statistics; and a network all of whose batch
norms are called several times per forward, once for each view.

Why: a batch's statistics tell each sample of the others. Where the keys of a batch belong to its queries, the network
can tell which ones go together without looking at what is in them: He et al. shuffle the keys over processes for this
reason, and Chen et al. take statistics over all of them. A teacher in training mode also moves its running statistics
by its batches while its weights are an average.

Ignore it: where both see the same data and nothing is contrasted (self-training with a teacher in evaluation mode is
not reported). Always a note.

Sources: He et al. 2020 (MoCo), https://arxiv.org/abs/1911.05722, section 3.3; Chen et al. 2020 (SimCLR),
https://arxiv.org/abs/2002.05709, section 2.2; Cai et al. 2021 (EMAN), https://arxiv.org/abs/2101.08482
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, nn

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make
from ..state import NormState

CODE, WHERE = "NK408", "teacher.1"
FIX = 'nk.convert(model, "sync") and keys shuffled over processes, or nk.convert(model, "group")'


def check(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.state.trains:
        return
    norms = [n for n in evidence.norms if n.family in BATCH_FAMILIES and n.training and not n.fixed and n.tracks]
    for teacher, student in evidence.state.teachers.items():
        own = [norm for norm in norms if norm.name.startswith(f"{teacher}.")]
        if own:
            cause = f"{teacher} is a copy of {student} without gradients, and {_some(own)} by its batches' statistics"
            yield make(CODE, own[0].where, "note", cause, FIX, measured=len(own), limit=0, unit="norms")
    calls = [run.traffic.calls for norm in norms if (run := evidence.run(norm)) is not None]
    if len(calls) > 1 and min(calls) > 1 and min(calls) == max(calls):
        cause = f"every batch norm is called {calls[0]} times per forward: each view is normalized by its own batch"
        yield make(CODE, norms[0].where, "note", cause, FIX, measured=calls[0], limit=1, unit="calls")


def _some(norms: list[NormState]) -> str:
    return f"{len(norms)} of its norms normalize" if len(norms) > 1 else "one of its norms normalizes"


def sick() -> Example:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = small_net()
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return (self.student(x) - self.teacher(x.flip(3))).square().mean()

    return Pair().train(), images()


def healthy() -> Example:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = small_net()
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return (self.student(x) - self.teacher(x.flip(3))).square().mean()

    model = Pair().train()
    model.teacher.eval()  # it normalizes by its running statistics
    return model, images()
