"""Batch norm in an exported graph: in training mode, or not folded.

What it checks: calls of batch_norm in the graph of an exported program (or one traced by torch.fx): by which
statistics they normalize.

Why: an export writes the mode down. A graph that was exported in training mode normalizes by each batch wherever it is
deployed, so that an answer depends on what else is in the batch, and eval() does not reach it. One exported in
evaluation mode is right, and carries a pass over memory for each norm that folding would have removed.

Ignore it: a graph for quantization-aware training is in training mode on purpose. That is a warning; what is not folded
always a note.

Sources: https://docs.pytorch.org/docs/stable/export.html; pytorch#103681; executorch#21056
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...surgery.fold import fold
from ..evidence import Evidence
from ..examples import Example, images, small_net
from ..finding import Finding, make

CODE, WHERE = "NK503", "4"


def check(evidence: Evidence) -> Iterator[Finding]:
    for norm in evidence.norms:
        if norm.graph is not None:
            yield make(
                CODE,
                norm.where,
                "warning" if norm.graph else "note",
                "the graph normalizes by the batch's statistics: it was exported in training mode"
                if norm.graph
                else "the graph holds it as an operation of its own",
                "torch.export.export(model.eval(), ...)"
                if norm.graph
                else "nk.fold(model, example_inputs), then export",
            )


def sick() -> Example:
    model = small_net()
    return torch.export.export(model.train(), (images()[0],)).module(), None


def healthy() -> Example:
    model = fold(small_net(), images()[0])  # then nothing of it is in the graph
    return torch.export.export(model, (images()[0],)).module(), None
