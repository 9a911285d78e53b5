"""The patient of `normkit doctor` without arguments: a small net, trained here in a second, with faults planted.

Rules: torch alone makes it, data included, from fixed seeds; nothing is downloaded and nothing is read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STEPS, BATCH, CLASSES, RATE = 60, 32, 4, 0.3
FAULTS = (
    "layer2.bn: momentum 0.001, so that 60 steps hardly moved its statistics",
    "layer3.bn: its statistics were lost when a checkpoint was loaded",
    "layer1.conv: a bias that the norm after it removes",
)


class Block(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, momentum: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(outputs, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Patient(nn.Module):
    """Three blocks and a linear layer over 1x16x16 pictures of stripes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = Block(1, 8, bias=True), Block(8, 16, momentum=0.001)
        self.layer3, self.head = Block(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def pictures(seed: int, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """(batch, 1, 16, 16) stripes in four directions, with noise, and their direction."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (batch,), generator=g)
    angle = label * torch.pi / CLASSES
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    along = columns * angle.cos().view(-1, 1, 1) + rows * angle.sin().view(-1, 1, 1)
    phase = 6.28 * torch.rand(batch, 1, 1, generator=g)
    light = torch.rand(batch, 1, 1, generator=g)
    clean = (along + phase).sin() + light
    return (clean + 0.5 * torch.randn(batch, 16, 16, generator=g)).unsqueeze(1), label


def patient() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The trained net in evaluation mode, and batches that it has not seen."""
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would load Dynamo, which takes seconds
        model = Patient()
        parameters = list(model.parameters())
        for step in range(STEPS):  # by hand: the first import of torch.optim takes longer than all of this
            x, label = pictures(step)
            gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), label), parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(gradient, alpha=RATE)
    model.layer3.bn.reset_running_stats()
    return model.eval(), [pictures(10_000 + i, batch=64) for i in range(8)]
