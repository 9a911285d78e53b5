"""The network's figures: memory is counted exactly, shares and limits follow from what was profiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normkit.bench import network
from normkit.bench.resnet import ResNet50


class Product(nn.Module):
    """Saves its image twice, a square of it once, and its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        x = images * self.scale  # saves images, scale
        return (x * x).flatten(1)  # saves x, once though twice in the formula


def training(model: nn.Module, images: Tensor) -> network.Training:
    return network._training(model, images)


def test_held_counts_each_storage_once_and_no_parameter() -> None:
    images = torch.randn(4, 3, 8, 8)
    image_bytes = images.numel() * 4
    held = network.held(training(Product(), images))
    assert 2 * image_bytes <= held
    # cross_entropy keeps its logarithms, one tensor of the image's size, and a few scalars
    assert held <= 3 * image_bytes + 256


def test_peak_is_at_least_what_is_allocated_at_once() -> None:
    images = torch.randn(4, 3, 8, 8)
    peak = network.peak(training(Product(), images))
    assert 2 * images.numel() * 4 <= peak <= 12 * images.numel() * 4


@pytest.fixture(scope="module")
def measured() -> network.Network:
    return network.measure(2, "NHWC", "float32", 1, 0.0, lambda: ResNet50(8, 10), 32)


def test_a_step_is_measured(measured: network.Network) -> None:
    assert measured.rounds >= 5
    assert 0 < measured.share < 1
    assert measured.free == pytest.approx(1 / (1 - measured.share))
    assert measured.limit < measured.free
    assert 0 < measured.held < measured.peak


def test_different_losses_are_not_timed() -> None:
    with pytest.raises(RuntimeError, match="not timed: the first losses differ"):
        network._verify({"plain": 2.3, "fast": 2.31}, "float32")
    network._verify({"plain": 2.3, "fast": 2.3001}, "float32")
