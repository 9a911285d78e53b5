"""The running statistics never moved.

What it checks: running_mean is 0 and running_var 1, exactly, in every channel: the values of a new layer.

Why: in evaluation such a layer normalizes nothing. It hands on gamma x / sqrt(1 + eps) + beta, while training divided
by the batch's own deviation: activations of deviation 5 come out 5 times too large, and so does all that follows. It
happens when a checkpoint is loaded without its buffers (strict=False, parameters only), when a layer only ever ran in
evaluation mode, or with momentum=0.

Ignore it: in a model that is not trained yet, in layers that evaluation does not run (auxiliary heads), and in frozen
layers; these are notes. With batches it is an error where the answer changes by more than batches differ. Without, it
is an error where every layer of a model that is not in training stands at 0 and 1 and some gamma or beta has been
trained: in every network on which this was measured (docs/doctor.md) the answer was lost. A single such layer is a
warning: what it does depends on the layer. Networks whose statistics were merged into gamma and beta (Caffe's,
Detectron's) stand at 0 and 1 on purpose: nk.freeze says so.

Sources: Ioffe & Szegedy 2015, algorithm 2, https://arxiv.org/abs/1502.03167; pytorch#4741, pytorch#5406
"""

from __future__ import annotations

from collections.abc import Iterator

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, Severity, make
from ..forward import SCREEN, UNIT
from ..state import NormState

CODE, WHERE = "NK101", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.at_start and norm.tracks is not False:
            run = evidence.measured(norm)
            trained = "" if norm.affine_at_start else ", though gamma and beta have"
            yield make(
                CODE,
                norm.where,
                _severity(evidence, norm),
                f"running_mean is 0 and running_var is 1 in every channel: they have never moved{trained}",
                f"nk.recalibrate(model, batches, only={norm.name!r})",
                measured=None if run is None else run.apart,
                limit=None if run is None else SCREEN,
                unit="" if run is None else UNIT,
            )


def _severity(evidence: Evidence, norm: NormState) -> Severity:
    if evidence.run(norm) is not None:
        return evidence.severity(norm)  # what it does has been seen, or that it does not run
    if norm.fixed is not None:
        return "note"
    if _lost(evidence, norm.copy):
        return "error"
    return "warning" if not norm.affine_at_start and norm.momentum != 0 else "note"


def _lost(evidence: Evidence, copy: str) -> bool:
    """Whether a trained model, or a copy of it in a file, that does not train now has no statistics left at all."""
    own = [norm for norm in evidence.norms if norm.copy == copy and norm.tracked and norm.fixed is None]
    trained = any(not norm.affine_at_start for norm in own)
    return trained and len(own) > 1 and all(norm.at_start for norm in own) and evidence.state.training is not True


def sick() -> Example:
    model = small_net()
    model[4].reset_running_stats()  # the checkpoint came without this layer's buffers
    return model, images()


def healthy() -> Example:
    return small_net(), images()
