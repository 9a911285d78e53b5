"""Inside of `nk.lengths` each sample of a padded batch is what it is alone, through whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.padding.models import NORMS, ChannelsLast, Norm, UNet, apart, batch, randomized, tcn, together, twins
from tests.tolerances import assert_equal64

LENGTHS = [29, 17, 32, 22]  # of 32: odd ones, so that halving and doubling do not come back to them
MODELS: dict[str, tuple[Callable[[Norm], nn.Module], tuple[int, ...], int]] = {
    "tcn": (tcn, (4, 3, 32), -1),
    "unet": (UNet, (4, 3, 32), -1),
    "unet upsampled": (lambda norm: UNet(norm, "size"), (4, 3, 32), -1),
    "unet padded": (lambda norm: UNet(norm, "pad"), (4, 3, 32), -1),
    "unet averaging": (lambda norm: UNet(norm, pool=nn.AvgPool1d(2, ceil_mode=True)), (4, 3, 32), -1),
    "channels last": (ChannelsLast, (4, 32, 6), 1),
}
each_model = pytest.mark.parametrize("name", MODELS)
each_norm = pytest.mark.parametrize("norm", NORMS)


def made(name: str, norm: str) -> tuple[nn.Module, Tensor, int]:
    make, shape, dim = MODELS[name]
    return randomized(make(NORMS[norm])), batch(shape, LENGTHS, dim, junk=3.0), dim % 3


def compare(y: Tensor, alone: list[Tensor], dim: int) -> None:
    """Each sample's real part is as long as that of the sample alone, and has its values."""
    for n, one in enumerate(alone):
        assert_equal64(y[n : n + 1].narrow(dim, 0, one.shape[dim]), one, f"sample {n}")


@each_norm
@each_model
def test_in_evaluation_each_sample_is_as_alone(name: str, norm: str) -> None:
    model, x, dim = made(name, norm)
    model.eval()
    alone = [model(one) for one in apart(x, LENGTHS, dim)]
    with nk.lengths(LENGTHS, dim):
        y = model(x)
    compare(y, alone, dim)


@each_norm
@each_model
def test_in_training_each_sample_is_as_alone_and_batch_norm_has_the_moments_of_real_values(
    name: str, norm: str
) -> None:
    model, x, dim = made(name, norm)
    ours, truth = twins(model)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    alone = together(truth, apart(inputs[1], LENGTHS, dim), lambda model, one: model(one))
    with nk.lengths(LENGTHS, dim):
        y = ours(inputs[0])
    compare(y, alone, dim)
    sum(one.pow(3).sum() for one in alone).backward()
    sum(y[n].narrow(dim - 1, 0, one.shape[dim]).pow(3).sum() for n, one in enumerate(alone)).backward()
    assert_equal64(inputs[0].grad, inputs[1].grad, "gradient of the input")
    for (key, mine), other in zip(ours.named_parameters(), truth.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert_equal64(mine.grad, other.grad, key, factor=1e5)  # sums of some thousand terms; a bias may cancel to 0
    for (key, buffer), other in zip(ours.named_buffers(), truth.buffers(), strict=True):
        if "num_batches" not in key:
            assert_equal64(buffer, other, key)


@each_model
def test_what_the_padding_holds_counts_nowhere(name: str) -> None:
    """NaN behind the ends, in training: outputs, gradients and statistics are what they are with zeros there."""
    model, clean, dim = made(name, "batch")
    ours, other = twins(model)
    junk = clean.clone()
    for n, length in enumerate(LENGTHS):
        junk[n].narrow(dim - 1, length, 32 - length).fill_(float("nan"))
    results = []
    for net, x in ((ours, junk), (other, clean)):
        with nk.lengths(LENGTHS, dim, zero_input=True):
            y = net(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in net.parameters()), *net.buffers()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@each_model
def test_layers_of_normkit_and_of_torch_are_the_same(name: str) -> None:
    model, x, dim = made(name, "batch")
    ours = nk.convert(model, "batch")
    results: list[list[Any]] = []
    for net in (model, ours):
        with nk.lengths(LENGTHS, dim):
            results.append([net(x), *net.buffers()])
    assert any(isinstance(layer, nk.BatchNorm1d) for layer in ours.modules())
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_mask_of_boxes_pads_two_axes() -> None:
    """Images of different sizes: convolutions, pools and norms see each as it is alone."""
    net = randomized(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.InstanceNorm2d(4), nn.AdaptiveAvgPool2d((2, None)),
            nn.BatchNorm2d(4),
        )
    ).eval()  # fmt: skip
    sizes = [(16, 9), (11, 16), (13, 12)]
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    for n, (height, width) in enumerate(sizes):
        mask[n, :height, :width] = True
    with nk.mask(mask):
        y = net(x)
    for n, (height, width) in enumerate(sizes):
        alone = net(x[n : n + 1, :, :height, :width])
        assert_equal64(y[n : n + 1, :, : alone.shape[2], : alone.shape[3]], alone)
