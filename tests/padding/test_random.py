"""Random stacks of layers over one and over two padded axes: each sample is as alone, as long and as large."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.padding.models import randomized
from tests.tolerances import assert_equal64

SIZE = 28


def layers(rank: int, channels: int, pick: random.Random) -> list[Callable[[], nn.Module]]:
    """One of each kind, its numbers drawn."""

    def kind(name: str) -> type[nn.Module]:
        return getattr(nn, f"{name}{rank}d")

    kernel, stride, ceil = pick.choice([1, 2, 3, 5]), pick.choice([1, 2]), pick.random() < 0.5
    window, around = pick.choice([2, 3]), pick.choice([0, 1])
    return [
        lambda: kind("Conv")(
            channels, channels, kernel, stride, pick.choice([0, kernel // 2]), pick.choice([1, 2]),
            padding_mode=pick.choice(["zeros", "zeros", "replicate"]),
        ),
        lambda: kind("ConvTranspose")(channels, channels, pick.choice([2, 3, 4]), stride, around),
        lambda: kind("MaxPool")(window, stride, around, ceil_mode=ceil),
        lambda: kind("AvgPool")(window, stride, around, ceil, pick.random() < 0.5),
        lambda: nn.GroupNorm(pick.choice([1, channels]), channels),
        lambda: kind("InstanceNorm")(channels, affine=True),
        lambda: kind("BatchNorm")(channels),
        lambda: pick.choice([nn.Sigmoid, nn.ReLU, nn.Softplus])(),
        lambda: nn.Upsample(scale_factor=pick.choice([1.5, 2])),
        lambda: kind("ConstantPad")((pick.choice([0, 2]), pick.choice([0, 1, -1])) * rank, pick.choice([0.0, 1.0])),
        lambda: kind(pick.choice(["AdaptiveAvgPool", "AdaptiveMaxPool"]))(5),
    ]  # fmt: skip


def network(rank: int, pick: random.Random) -> nn.Module:
    channels = pick.choice([2, 4])
    made = [pick.choice(layers(rank, channels, pick))() for _ in range(pick.randint(1, 6))]
    return randomized(nn.Sequential(nn.Conv1d(channels, channels, 1) if rank == 1 else nn.Identity(), *made)).eval()


@pytest.mark.filterwarnings("ignore:normkit.lengths. no norm", "ignore:Using padding")
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("rank", [1, 2])
def test_each_sample_is_as_alone(rank: int, seed: int) -> None:
    pick = random.Random(seed)
    torch.manual_seed(seed)
    net = network(rank, pick)
    channels = next((len(p) for p in net.parameters()), 2)
    sizes = [tuple(pick.randint(14, SIZE) for _ in range(rank)) for _ in range(pick.randint(1, 4))]
    x = 3 * torch.randn(len(sizes), channels, *[SIZE] * rank, dtype=torch.float64)
    mask = torch.zeros(len(sizes), *[SIZE] * rank, dtype=torch.bool)
    alone: list[Tensor] = []
    for n, size in enumerate(sizes):
        box = tuple(slice(0, length) for length in size)
        mask[(n, *box)] = True
        try:
            alone.append(net(x[(slice(n, n + 1), slice(None), *box)]))
        except RuntimeError:  # too short for a kernel
            pytest.skip("a sample alone is refused")
    with nk.mask(mask) as padded:
        y = net(x)
        lengths = [padded.lengths_of(y, axis).tolist() for axis in range(2, y.dim())]
    for n, one in enumerate(alone):
        assert [length[n] for length in lengths] == list(one.shape[2:])
        assert_equal64(y[(slice(n, n + 1), slice(None), *(slice(0, length) for length in one.shape[2:]))], one)
