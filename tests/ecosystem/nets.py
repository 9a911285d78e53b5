"""One small net with every common norm, built of torch's layers or of ours, for whatever tool looks at it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn

import normkit as nk

CLASSES = 4


class Net(nn.Module):
    """Convolutions with a residual addition, then rows. kit: torch.nn or normkit."""

    def __init__(self, kit: ModuleType) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), kit.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), kit.BatchNorm2d(8)
        self.group, self.instance = kit.GroupNorm(2, 8), kit.InstanceNorm2d(8, affine=True)
        self.layer, self.rms = kit.LayerNorm(8), kit.RMSNorm(8)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        x = self.relu(self.instance(self.group(x)))
        return self.head(self.rms(self.layer(x.mean((2, 3)))))


def net(kit: ModuleType = nk) -> nn.Module:
    """The same weights whatever it is built of."""
    torch.manual_seed(0)
    return Net(kit)


def accelerated() -> nn.Module:
    """Torch's net with its norms replaced and its forward rewritten."""
    return nk.accelerate(net(nn), images())


# what a tool may be given, each the same function as net(nn)
OURS: dict[str, Callable[[], nn.Module]] = {"drop-in": net, "accelerated": accelerated}


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 6) -> Tensor:
    return torch.arange(count) % CLASSES


def train(model: nn.Module, steps: int = 3) -> None:
    """A few steps of gradient descent, in training mode."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images(seed=step)), labels()).backward()
        optimizer.step()


def assert_same_state(found: nn.Module, expected: nn.Module) -> None:
    """Of two trained models: three steps amplify a float32 rounding a little."""
    mine, theirs = found.state_dict(), expected.state_dict()
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
