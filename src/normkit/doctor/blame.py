"""What a layer's statistics do to the answer, and whether that is more than batches differ by.

Rules: a layer is judged in a network whose other layers are exact, so that an earlier fault is not blamed on it; its
own noise is the answer under its statistics of single batches, as those of COUNTED images would make it: how many the
loader puts into a batch says nothing of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..statistics.batches import Feed
from ..statistics.layers import Layer
from ..statistics.lent import Lent
from . import answers
from .reference import other_eps
from .state import State
from .watch import Watched

PLAYERS = 16  # layers that get passes of their own
JUDGES = 4  # batches in each of these passes
CHAOTIC = 0.95  # of the answer's standard deviation by single batches: about as far as answers to other inputs
FELT = 0.05  # of the answer's standard deviation: a smaller change is none
COUNTED = 32  # images in the batch whose noise a change is held against: few train batch norm with less


@dataclass(frozen=True)
class Felt:
    """What one layer alone does to the answer, in the answer's standard deviations: by its running statistics, and by
    those of single batches as they are. exceeds: the first is more than batches differ, and felt."""

    change: float | None
    by_batch: float | None
    exceeds: bool


@dataclass(frozen=True, eq=False)
class Trial:
    """A model in evaluation mode, its batches, the exact statistics, and the answer under them (`right`)."""

    model: nn.Module
    batches: Sequence[Any]
    forward: Feed | None
    exact: answers.Statistics
    right: answers.Answer
    seen: dict[nn.Module, Watched]
    images: int

    def alone(self, layers: list[Layer]) -> dict[str, Felt]:
        """Of the first PLAYERS layers what each does alone."""
        few, right, found = self.batches[:JUDGES], self.right[:JUDGES], {}
        perturbed = answers.lending(self.perturbed())
        for layer in layers[:PLAYERS]:
            others = answers.lending({m: pair for m, pair in self.exact.items() if m is not layer.module})
            change = answers.apart(answers.answer(self.model, few, self.forward, others), right)
            watched = self.seen[layer.module]
            enough = all(int(sample.values) > 1 for sample in watched.samples)
            shared = max(watched.places, default=0) > 0  # its calls differ by more than batches do
            replays = enough and len(self.batches) > 1 and not layer.per_instance and not shared
            in_batch = _replaying(layer.module, watched) if replays else perturbed[layer.module]
            stand_ins = {**others, layer.module: in_batch}
            noise = answers.apart(answers.answer(self.model, few, self.forward, stand_ins), right)
            counted = self.images / len(self.batches) if replays else self.images
            found[layer.name] = Felt(most(change), most(noise), exceeds(change, noise, counted))
        return found

    def other_eps(self, state: State) -> list[float] | None:
        """How the answer changes where each layer gets the eps of its reference; None where all have it."""
        wanted = [one for one in other_eps(state) if one.known and one.norm.graph is None]
        if not wanted:
            return None
        for one in wanted:  # given back with the model
            norm: Any = self.model.get_submodule(one.norm.name)
            norm.eps = one.eps
        return answers.apart(
            answers.answer(self.model, self.batches, self.forward, answers.lending(self.exact)), self.right
        )

    def perturbed(self) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        """Statistics that are off by their standard errors, with alternating signs: what another batch would have
        given."""
        found = {}
        for module, (mean, var) in self.exact.items():
            mean_error, var_error = self.seen[module].errors()
            sign = torch.ones_like(mean)
            sign[1::2] = -1
            finite = torch.isfinite(mean_error)
            moved_var = torch.where(finite, var + sign.flip(0) * var_error, var)
            found[module] = torch.where(finite, mean + sign * mean_error, mean), moved_var.clamp(min=0)
        return found


def exceeds(change: list[float] | None, noise: list[float] | None, images: float) -> bool:
    """Whether some output changes by more than twice what batches of COUNTED images differ, and so that it is felt.

    noise: what the statistics of `images` images make; as a standard error it goes with 1 / sqrt(images).
    """
    if change is None or noise is None:
        return False
    scale = math.sqrt(images / COUNTED)
    return any(a > max(2 * scale * b, FELT) for a, b in zip(change, noise, strict=True))


def exceeds_together(change: list[float] | None, noise: list[float] | None, images: float, known_from: int) -> bool:
    """Whether all running statistics together change some output by more than batches differ, though no layer is
    surely off.

    Noise of single batches is not scaled to smaller batches here, and where their answers have hardly anything in
    common with the exact ones (a chaotic network) nothing is said. known_from: of how many images the exact statistics
    are, which are off by that themselves.
    """
    if change is None or noise is None:
        return False
    share = min(images / known_from, 0.5)  # of a batch in the exact statistics, from which it differs by so much less
    scale = max(1.5 * max(1.0, math.sqrt(images / COUNTED)), 4 * math.sqrt(share / (1 - share)))
    return any(a > max(scale * b, FELT) and b < CHAOTIC for a, b in zip(change, noise, strict=True))


def most(values: list[float] | None) -> float | None:
    return max(values) if values else None


def _replaying(module: nn.Module, watched: Watched) -> Callable[..., Any]:
    """A stand-in that normalizes the k-th call by the statistics that the k-th call of the first pass had."""
    own, tables = module.forward, iter([(s.table[0], s.table[1]) for s in watched.samples])

    def forward(*args: Any, **kwargs: Any) -> Any:
        with Lent(module, *next(tables)) as lent, lent:
            return own(*args, **kwargs)

    return forward
