"""Weight decay on gamma and beta.

What it checks: norms whose parameters are in an optimizer's group with weight decay.

Why: decay in front of a norm changes the effective learning rate only; decay of gamma and beta pulls the function
itself towards 0. Most recipes leave it out and gain a few tenths of a point.

Ignore it: always a note.

Sources: He et al. 2019 (bag of tricks), https://arxiv.org/abs/1812.01187, section 3.1; Zhang et al. 2019,
https://arxiv.org/abs/1810.12281
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..evidence import Evidence
from ..examples import Example, small_net
from ..finding import Finding, make

CODE, WHERE = "NK403", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.decay > 0:
            yield make(
                CODE,
                norm.where,
                "note",
                f"the optimizer decays its gamma and beta by {norm.decay:g}",
                f"torch.optim.SGD(nk.parameter_groups(model, weight_decay={norm.decay:g}), lr)",
                measured=norm.decay,
                limit=0,
                unit="weight decay",
            )


def sick() -> Example:
    model = small_net().train()
    return model, None, {"optimizer": torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-4)}


def healthy() -> Example:
    model = small_net().train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": rest, "weight_decay": 0.0}]
    return model, None, {"optimizer": torch.optim.SGD(groups, 0.1)}
