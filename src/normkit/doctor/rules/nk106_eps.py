"""eps is not the one that the model was made with, or it outweighs the variance.

What it checks: an eps other than that of the architecture's reference (a list of those that are known), or other than
that of the model's other layers of the same kind; and how much it matters: the 5th percentile of running_var against
10 eps.

Why: eps stands inside the root, sqrt(var + eps). It is in no checkpoint: a model that is rebuilt with the default
1e-5 in place of 1e-3 loads without a word. At a variance of 1e-3 its outputs are sqrt(2) = 1.41 times too large; at a
variance of 1 the difference is 0.05 %.

Ignore it: where the low percentiles of running_var are far above eps: a note. It is a warning where the reference's
eps is known to be another one and the 5th percentile of running_var is below ten times the larger of the two.

Sources: libreyolo#700 (0.36 mAP in place of 0.55); torchvision's MobileNetV3, Inception and GoogLeNet and Keras'
layers use 1e-3
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import mode

import torch

from ...model.families import BATCH_FAMILIES
from ..evidence import Evidence
from ..examples import Example, images, settled, small_net
from ..finding import Finding, make
from ..state import NormState, State

# (package, beginning of the class name) -> eps of all its batch norms; the same name in another library has another one
REFERENCES = {
    ("torchvision", "MobileNetV3"): 1e-3,
    ("torchvision", "Inception3"): 1e-3,
    ("torchvision", "GoogLeNet"): 1e-3,
    ("ultralytics", "DetectionModel"): 1e-3,
}

CODE, WHERE = "NK106", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    reference = _reference(evidence.state)
    for (kind, *_), norms in _by_family(evidence).items():
        usual = mode([norm.eps for norm in norms])
        wanted = reference if reference is not None and kind == "batch" else usual
        for norm in norms:
            if norm.eps != wanted:
                yield _finding(evidence, norm, wanted, known=wanted == reference)


def _by_family(evidence: Evidence) -> dict[tuple[str, str], list[NormState]]:
    found: dict[tuple[str, str], list[NormState]] = {}
    for norm in evidence.norms:
        if norm.eps is not None:
            family = "batch" if norm.family in BATCH_FAMILIES else str(norm.family)
            found.setdefault((family, norm.copy), []).append(norm)
    return found


def _reference(state: State) -> float | None:
    known = (
        eps for (library, name), eps in REFERENCES.items() if state.library == library and state.kind.startswith(name)
    )
    return next(known, None)


def _finding(evidence: Evidence, norm: NormState, wanted: float | None, known: bool) -> Finding:
    eps = float(norm.eps or 0.0)
    low, scale = None, ""
    if norm.var is not None and wanted is not None:
        low = float(norm.var.quantile(0.05))
        times = math.sqrt((max(low, 0) + wanted) / (max(low, 0) + eps)) if low + eps > 0 else math.inf
        scale = f"; in a channel of small variance ({low:.2g}) its outputs come out {times:.3g} times as large"
    matters = low is not None and low < 10 * max(eps, wanted or 0.0)
    return make(
        CODE,
        norm.where,
        "warning" if matters and known else "note",
        f"eps is {eps:g}, {'the reference has' if known else 'the other layers have'} {wanted:g}{scale}",
        f"layer.eps = {wanted:g}",
        measured=low,
        limit=10 * max(eps, wanted or 0.0),
        unit="5th percentile of running_var",
    )


def sick() -> Example:
    model = small_net()
    model[4].eps = 1e-2  # rebuilt with another default
    with torch.no_grad():
        model[3].weight.mul_(0.1)
    return settled(model, images()), images()


def healthy() -> Example:
    return small_net(), images()
