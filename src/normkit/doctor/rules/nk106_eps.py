"""eps is not the one that the model was made with, or it outweighs the variance.

What it checks: an eps other than that of the architecture's reference (a list of those that are known), or other than
that of the model's other layers of the same kind; and how much it matters: the 5th percentile of running_var against
10 eps.

Why: eps stands inside the root, sqrt(var + eps). It is in no checkpoint: a model that is rebuilt with the default
1e-5 in place of 1e-3 loads without a word. At a variance of 1e-3 its outputs are sqrt(2) = 1.41 times too large; at a
variance of 1 the difference is 0.05 %.

Ignore it: where the low percentiles of running_var are far above eps: a note. Where the reference's eps is known to be
another one and the 5th percentile of running_var is below ten times the larger of the two, it is an error if the
reference's eps changes the answer by more than batches differ, else a note; without batches a warning.

Sources: libreyolo#700 (0.36 mAP in place of 0.55); torchvision's MobileNetV3, Inception and GoogLeNet and Keras'
layers use 1e-3
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..evidence import Evidence
from ..examples import Example, images, settled, small_net
from ..finding import Finding, Severity, make
from ..reference import other_eps
from ..state import NormState

CODE, WHERE = "NK106", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm, wanted, known in other_eps(evidence.state):
        eps = float(norm.eps or 0.0)
        low, scale = None, ""
        if norm.var is not None:
            low = float(norm.var.quantile(0.05))
            times = math.sqrt((max(low, 0) + wanted) / (max(low, 0) + eps)) if low + eps > 0 else math.inf
            scale = f"; in a channel of small variance ({low:.2g}) its outputs come out {times:.3g} times as large"
        limit = 10 * max(eps, wanted)
        yield make(
            CODE,
            norm.where,
            _severity(evidence, norm) if known and low is not None and low < limit else "note",
            f"eps is {eps:g}, {'the reference has' if known else 'the other layers have'} {wanted:g}{scale}",
            f"layer.eps = {wanted:g}",
            measured=low,
            limit=limit,
            unit="5th percentile of running_var",
        )


def _severity(evidence: Evidence, norm: NormState) -> Severity:
    """What the other eps does to the answer; a warning where that was not measured."""
    if evidence.forward is None or evidence.run(norm) is None:
        return "warning"
    return "error" if evidence.forward.eps_harmful else "note"


def sick() -> Example:
    model = small_net()
    model[4].eps = 1e-2  # rebuilt with another default
    with torch.no_grad():
        model[3].weight.mul_(0.1)
    return settled(model, images()), images()


def healthy() -> Example:
    return small_net(), images()
