"""A norm makes the model's output.

What it checks: by the dataflow, a norm with running statistics whose output is an output of the model.

Why: what leaves the model has the mean and deviation that gamma and beta say, per channel, over the data of training:
a regression cannot leave that range, and logits are tied to the share of their class in a batch.

Ignore it: where normalized features are the product (embeddings, contrastive heads). A note.

Sources: none that is general; see Chen et al. 2020 (SimCLR) and Grill et al. 2020 (BYOL) for heads that do it on
purpose
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..evidence import Evidence
from ..examples import Example, images, settled, small_net
from ..finding import Finding, make

CODE, WHERE = "NK208", "2"


def check(evidence: Evidence) -> Iterator[Finding]:
    flow = None if evidence.forward is None else evidence.forward.flow
    for norm in evidence.norms:
        calls = evidence.calls(norm)
        if flow is not None and norm.tracked and calls and set(calls[-1].outputs) & set(flow.outputs):
            yield make(CODE, norm.where, "note", "its output is an output of the model", "end with a linear layer")


def sick() -> Example:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.BatchNorm2d(8))
    return settled(model, images()), images()


def healthy() -> Example:
    return small_net(), images()
