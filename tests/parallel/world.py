"""Where a case of data-parallel training runs: on one of two ranks, or as the truth on one process with all shares.

A case is written once and asks its world for the share, the wrapper and the loss; so truth and test cannot part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import normkit as nk
from tests.cases import EPS, MOMENTUM, gaussian, generator

RANKS, SAMPLES, STEPS = 2, 8, 3
State = dict[str, Tensor]


@dataclass(frozen=True)
class World:
    """rank: None is one process."""

    rank: int | None

    @property
    def is_parallel(self) -> bool:
        return self.rank is not None

    def share(self, x: Tensor) -> Tensor:
        """This rank's samples of a batch, or all."""
        return x if self.rank is None else x.chunk(RANKS)[self.rank]

    def parallel(self, model: nn.Module, **options: Any) -> nn.Module:
        return model if self.rank is None else DistributedDataParallel(model, **options)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def norm(self, channels: int) -> nn.Module:
        """Synchronised on ranks; on one process torch's own batch norm of them all."""
        made = nn.BatchNorm1d if self.rank is None else nk.SyncBatchNorm
        return made(channels, EPS, MOMENTUM)

    def loss(self, y: Tensor, total: int = SAMPLES) -> Tensor:
        """The sum over this rank's samples, weighed so that the ranks' average is the mean over all `total` samples.

        An empty share gives 0, where a mean would give NaN.
        """
        return y.square().sum() * (RANKS if self.is_parallel else 1) / total


def batches(count: int = STEPS, samples: int = SAMPLES) -> Iterator[Tensor]:
    """The same whole batches on every rank."""
    for step in range(count):
        yield gaussian((samples, 3, 5), generator(step), mean=1.0)


def net(norm: nn.Module) -> nn.Sequential:
    """(N, 3, 5) to (N, 2); the same start in every world."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(20, 2)).double()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def state(model: nn.Module) -> State:
    """The state of the model inside of whatever wraps it."""
    found = {}
    for name, value in model.state_dict().items():
        found[name.replace("_orig_mod.", "").removeprefix("module.")] = value.detach().clone()
    return found


def train(world: World, model: nn.Module, x: Iterator[Tensor] | None = None) -> State:
    """Some steps of the loss; the trained state."""
    stepping = optimizer(model)
    for batch in batches() if x is None else x:
        stepping.zero_grad()
        world.loss(model(world.share(batch)), len(batch)).backward()
        stepping.step()
    return state(model)
