"""The network's figures: memory is counted exactly, shares and limits follow from what was profiled."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from normkit.bench import network
from normkit.bench.resnet import ResNet50


class Product(nn.Module):
    """Keeps a product of its image and its parameter, and the square of that."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        x = images * self.scale
        return (x * x).flatten(1)  # keeps x


def training(model: nn.Module, images: Tensor) -> network.Training:
    return network._training(model, images)


def test_memory_is_what_a_step_allocates() -> None:
    images = torch.randn(4, 3, 8, 8)
    image_bytes = images.numel() * 4
    held, peak = network.memory(training(Product(), images))
    # x and cross_entropy's logarithms, each of the image's size, and a few scalars; the image itself was there before
    assert 2 * image_bytes <= held <= 2 * image_bytes + 256
    assert held + image_bytes <= peak <= 8 * image_bytes


@pytest.fixture(scope="module")
def measured() -> network.Network:
    return network.measure(2, "NHWC", "float32", 1, 0.0, partial(ResNet50, 8, 10), 32)


def test_a_step_is_measured(measured: network.Network) -> None:
    assert measured.rounds >= 5
    assert 0 < measured.share < 1
    assert measured.free == pytest.approx(1 / (1 - measured.share))
    assert measured.limit < measured.free
    assert 0 < measured.held < measured.peak
    assert list(measured.contenders) == ["accelerated", "nothing kept", "recomputing"]
    accelerated, nothing_kept, _ = measured.contenders.values()
    assert (accelerated.held, accelerated.peak) == (nothing_kept.held, nothing_kept.peak)  # counted without reuse


def test_different_losses_are_not_timed() -> None:
    with pytest.raises(RuntimeError, match="not timed: the first losses differ"):
        network._verify({"plain": 2.3, "fast": 2.31}, "float32")
    network._verify({"plain": 2.3, "fast": 2.3001}, "float32")
