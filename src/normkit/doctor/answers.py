"""The answers of a model under chosen statistics, and how far apart two of them are.

Rules: every pass begins with the same random numbers; of each output at most LARGEST values are kept, at the same
places; where answers differ in form, nothing is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.dataflow import cloned
from ..model.kept import Kept
from ..model.recorder import named_leaves
from ..statistics.batches import Feed, call
from ..statistics.stand_in import FORWARD, put_in, under

LARGEST = 1 << 18  # values per output and batch
Answer = list[list[Tensor]]  # batch -> outputs
Statistics = Mapping[nn.Module, tuple[Tensor, Tensor]]


def answer(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Feed | None,
    stand_ins: Mapping[nn.Module, Callable[..., Any]],
    after_batch: Callable[[], object] = lambda: None,
) -> Answer:
    """Run all batches with these forwards in the layers' places."""
    own = Kept(*stand_ins, only=FORWARD)
    put_in(stand_ins)
    seed()
    found = []
    for batch in map(cloned, batches):  # a forward may work in place on what it is given
        output = (forward or call)(model, batch)
        leaves = [leaf for _, leaf in named_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        found.append([_sampled(leaf) for leaf in leaves])
        after_batch()
    own.give_back()
    return found


def seed() -> None:
    """The same random numbers for every run. `torch.manual_seed` would load Dynamo, which takes seconds."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


def lending(statistics: Statistics) -> dict[nn.Module, Callable[..., Any]]:
    """Stand-ins that normalize by these statistics, (mean, unbiased var) of each layer."""
    return {module: under(module, *pair) for module, pair in statistics.items()}


def apart(one: Answer, other: Answer) -> list[float] | None:
    """Of each output the root mean square difference, in standard deviations of `other` over all of its values.

    None where they cannot be compared: no outputs, or of other shapes. Not finite: inf.
    """
    if not other or not other[0] or any(len(batch) != len(other[0]) for batch in (*one, *other)):
        return None
    found = []
    for index in range(len(other[0])):
        if any(a[index].shape != b[index].shape for a, b in zip(one, other, strict=True)):
            return None
        a, b = (torch.cat([batch[index] for batch in side]) for side in (one, other))
        scale = float(b.std(correction=0)) or float(b.square().mean().sqrt()) or 1.0
        gap = float((a - b).square().mean().sqrt()) / scale if b.numel() else 0.0
        found.append(gap if math.isfinite(gap) else math.inf)
    return found


def _sampled(output: Tensor) -> Tensor:
    flat = (output.values() if output.layout is torch.jagged else output).detach().flatten()
    return flat[:: max(1, -(-flat.numel() // LARGEST))].double().cpu()
