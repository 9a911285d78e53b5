"""eps or momentum that a train/eval swap of an exported graph resets.

What it checks: calls of batch_norm in an exported graph whose eps is not 1e-5 or whose momentum is not 0.1.

Why: quantization-aware training of an exported graph goes from training to evaluation by exchanging these calls
(move_exported_model_to_eval, and back). The calls put in are made with the defaults, eps 1e-5 and momentum 0.1,
whatever the old ones had: a network with eps 1e-3 answers differently from then on, at a variance of 1e-3 by a factor
of 1.41, and nothing says so. Whether it has happened `nk.compare(model, graph)` tells, by the layers' names.

Ignore it: where no such swap is made, or the version of torchao copies them. Always a note.

Sources: pytorch/ao#2980, pytorch/ao#4107, pytorch/ao#4758
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make
from ..graph import DEFAULTS

CODE, WHERE = "NK505", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.graph is not None and (norm.eps, norm.momentum) != DEFAULTS:
            yield make(
                CODE,
                norm.where,
                "note",
                f"eps {norm.eps:g} and momentum {norm.momentum:g} come back as 1e-05 and 0.1 from a train/eval swap",
                "set the arguments of the graph's calls again after the swap; nk.compare(model, graph) lists them",
                measured=norm.eps,
                limit=DEFAULTS[0],
                unit="eps",
            )


def sick() -> Example:
    model = small_net()
    model[4].eps = 1e-3
    return torch.export.export(model, (images()[0],)).module(), None


def healthy() -> Example:
    model = small_net()
    return torch.export.export(model, (images()[0],)).module(), None
