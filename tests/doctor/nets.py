"""Small networks, trained or with right statistics, for the tests of the doctor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from tests.cases import generator

Norm = Callable[[int], nn.Module]


class Residual(nn.Module):
    """Three blocks of two norms each, with a skip around them: names like block2.norm1."""

    def __init__(self, norm: Norm = nn.BatchNorm2d, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        for i in range(3):
            block = nn.Module()
            for j in (1, 2):
                block.add_module(f"conv{j}", nn.Conv2d(channels, channels, 3, padding=1))
                block.add_module(f"norm{j}", norm(channels))
            self.add_module(f"block{i}", block)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i in range(3):
            block = self.get_submodule(f"block{i}")
            y = F.relu(block.norm1(block.conv1(x)))
            x = F.relu(block.norm2(block.conv2(y)) + x)
        return self.head(self.drop(x.mean((2, 3))))


class Chain(nn.Sequential):
    """conv, norm, relu, thrice, and a head: norms 1, 4 and 7."""

    def __init__(self, norm: Norm = nn.BatchNorm2d) -> None:
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1), norm(8), nn.ReLU()]
        super().__init__(*layers, nn.Flatten(), nn.Linear(8 * 36, 4))


class Shared(nn.Module):
    """One norm called after each of two layers."""

    def __init__(self, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.other, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), norm(8)
        self.last, self.head = norm(8), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.norm(self.other(x)))
        return self.head(self.last(x).flatten(1))


class Rows(nn.Sequential):
    """A multilayer perceptron over the flattened image: norms 2 and 5."""

    def __init__(self, norm: Norm = nn.BatchNorm1d) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(108, 16), norm(16), nn.ReLU(), nn.Linear(16, 16), norm(16), nn.ReLU(),
            nn.Linear(16, 4)
        )  # fmt: skip


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A new network with the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def images(batches: int = 8, size: int = 16, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """(images (N, 3, 6, 6), labels (N,)): four classes, each with a pattern of its own under noise."""
    g = generator(seed)
    patterns = torch.randn(4, 3, 6, 6, generator=generator(0))
    labels = [torch.randint(4, (size,), generator=g) for _ in range(batches)]
    return [(patterns[y] + 1.5 * torch.randn(size, 3, 6, 6, generator=g) + 2, y) for y in labels]


def trained(make: Callable[[], nn.Module], steps: int = 120, size: int = 16, seed: int = 0) -> nn.Module:
    """Trained by SGD whose rate falls to 0, and left in evaluation mode.

    Its running statistics are those of momentum 0.1 and weights that stand still in the end: while weights move fast,
    they lag behind, and the gap that they leave is real.
    """
    return copy.deepcopy(_trained(make, steps, size, seed))


@cache
def _trained(make: Callable[[], nn.Module], steps: int, size: int, seed: int) -> nn.Module:
    model = seeded(make, seed).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of dropout
        for step, (x, y) in enumerate(images(steps, size, seed + 100)):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def recalibrated(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """An untrained network with exact statistics of `images()`, in evaluation mode."""
    model = seeded(make, seed).eval()
    nk.recalibrate(model, images(), sequential=True, progress=False)
    return model


def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(output, batch[1])
