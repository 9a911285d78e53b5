"""Training and testing as the studies do it: SGD on shuffled batches, everything drawn from one seed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .._torch import onednn_switch
from .data import Images

TEST_BATCH = 500
SMALLEST_FOR_ONEDNN = 8


@dataclass(frozen=True)
class Plan:
    """`steps` steps of SGD at `rate`; `decay` lets the rate fall linearly to zero, so that the weights come to rest."""

    batch: int
    steps: int
    rate: float
    momentum: float = 0.9
    decay: bool = False


def train(
    model: nn.Module,
    images: Images,
    plan: Plan,
    seed: int,
    after: Callable[[int], object] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> bool:
    """Train in place; `after(step)` may return True to stop early. Returns False if the loss stopped being finite.

    parameters: groups with a weight decay of their own, as an optimizer takes them; all of the model's without any.

    That answer is the caller's news: the norms' own warning of a batch with NaN or Inf is not repeated to the user.
    """
    given: Any = model.parameters() if parameters is None else parameters
    optimizer = torch.optim.SGD(given, lr=plan.rate, momentum=plan.momentum, fused=True)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with warnings.catch_warnings(), _onednn(plan.batch > SMALLEST_FOR_ONEDNN):
        warnings.filterwarnings("ignore", "a batch with NaN or Inf", RuntimeWarning)
        for step, (x, y) in enumerate(_batches(images, plan, generator), start=1):
            if plan.decay:
                for group in optimizer.param_groups:
                    group["lr"] = plan.rate * (1 - (step - 1) / plan.steps)
            loss = cross_entropy(model(x), y)
            if not math.isfinite(loss.item()):
                return False
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after is not None and after(step):
                break
    return True


@torch.no_grad()
def test(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """(mean cross-entropy, share of wrong answers) in the mode that the model is in; a NaN answer is a wrong one."""
    loss, wrong = 0.0, 0
    for part_x, part_y in zip(x.split(TEST_BATCH), y.split(TEST_BATCH), strict=True):
        logits = model(part_x)
        loss += cross_entropy(logits, part_y, reduction="sum").item()
        right = (logits.argmax(1) == part_y) & logits.isfinite().all(1)
        wrong += len(part_y) - int(right.sum())
    return loss / len(y), wrong / len(y)


@contextmanager
def _onednn(enabled: bool) -> Iterator[None]:
    """oneDNN on or off: its set-up for a convolution costs more than the convolution itself on a handful of images."""
    is_enabled, enable = onednn_switch()
    before = is_enabled()
    enable(enabled)
    try:
        yield
    finally:
        enable(before)


def _batches(images: Images, plan: Plan, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """`plan.steps` full batches, epoch after epoch, each epoch in a new order; a short last batch is left out."""
    done = 0
    while True:
        order = torch.randperm(len(images.train_y), generator=generator)
        for index in order[: len(order) // plan.batch * plan.batch].split(plan.batch):
            if done == plan.steps:
                return
            yield images.train_x[index], images.train_y[index]
            done += 1
