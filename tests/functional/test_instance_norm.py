"""Instance norm: the reference, channels_last, running statistics with masks, counts and cumulative averages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import normkit as nk
from normkit import reference
from tests.cases import EPS, LAYOUTS, MOMENTUM, affine, gaussian, generator
from tests.functional.norms import EXACT_BACKENDS, assert_layout_kept
from tests.functional.rows import Truth, assert_mask_selects, assert_right

SHAPE = (3, 5, 4, 7)
each_backend = pytest.mark.parametrize("backend", EXACT_BACKENDS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def truth(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor | None) -> Truth:
    xhat, _, var = reference.instance_norm(x, None, None, EPS)
    gradients = reference.instance_norm_backward(dy, x, weight, EPS)
    return (reference.instance_norm(x, weight, bias, EPS)[0], *gradients, xhat, (var + EPS).rsqrt()[..., None, None])


@each_backend
@each_layout
def test_it_is_right_and_keeps_the_layout(layout: Any, backend: str) -> None:
    g = generator(1)
    x, dy = (layout(gaussian(SHAPE, g, mean=1e3).float()) for _ in range(2))
    weight, bias = (p.float() for p in affine(5, g))

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with nk.backend(backend):
            y = nk.functional.instance_norm(x, None, None, w, b, eps=EPS)
        assert_layout_kept(y, x)
        return y

    assert_right(norm, x, dy, weight, bias, truth, (2, 3), (0, 2, 3), lambda p: p.reshape(1, -1, 1, 1))


@each_backend
def test_running_statistics_average_the_samples(backend: str) -> None:
    layer = nk.InstanceNorm2d(5, EPS, MOMENTUM, track_running_stats=True)
    expected_mean, expected_var = torch.zeros(5), torch.ones(5)
    for seed in range(3):
        x = gaussian(SHAPE, generator(seed), mean=3.0).float()
        with nk.backend(backend):
            layer(x)
        _, mean, var = reference.instance_norm(x.double(), None, None, EPS)
        mean, var = reference.running_instance_statistics(mean, var, 28)
        expected_mean = (1 - MOMENTUM) * expected_mean + MOMENTUM * mean
        expected_var = (1 - MOMENTUM) * expected_var + MOMENTUM * var
    torch.testing.assert_close(layer.running_mean, expected_mean.float())
    torch.testing.assert_close(layer.running_var, expected_var.float())
    assert layer.num_batches_tracked == 3


def test_momentum_none_is_the_cumulative_average() -> None:
    layer = nk.InstanceNorm2d(5, momentum=None, track_running_stats=True)
    batches = [gaussian(SHAPE, generator(seed)).float() for seed in range(4)]
    for x in batches:
        layer(x)
    expected = torch.stack([x.double().mean((2, 3)).mean(0) for x in batches]).mean(0)
    torch.testing.assert_close(layer.running_mean, expected.float())


def test_masked_samples_average_by_their_real_values() -> None:
    layer = nk.InstanceNorm1d(5, momentum=None, track_running_stats=True)
    x = gaussian((4, 5, 9), generator(2)).float()
    lengths = [9, 4, 1, 0]  # one value has no unbiased variance, none has no mean: neither sample counts
    layer(x, mask=nk.mask_from_lengths(lengths, 9))
    parts = [x[i, :, :n].double() for i, n in enumerate(lengths) if n >= 2]
    torch.testing.assert_close(layer.running_mean, torch.stack([p.mean(1) for p in parts]).mean(0).float())
    torch.testing.assert_close(layer.running_var, torch.stack([p.var(1) for p in parts]).mean(0).float())
    assert layer.num_batches_tracked == 1


def test_a_masked_sample_is_normalized_by_its_real_values_alone() -> None:
    g = generator(3)
    x, (weight, bias) = gaussian((3, 5, 9), g), affine(5, g)
    mask = nk.mask_from_lengths([9, 4, 2], 9)
    y = nk.functional.instance_norm(x, None, None, weight, bias, eps=EPS, mask=mask)
    for i, n in enumerate((9, 4, 2)):
        expected = reference.instance_norm(x[i : i + 1, :, :n], weight, bias, EPS)[0]
        torch.testing.assert_close(y[i : i + 1, :, :n], expected)
    assert_mask_selects(
        lambda x, w, b: nk.functional.instance_norm(x, None, None, w, b, eps=EPS, mask=mask),
        x,
        mask.unsqueeze(1),
        (weight, bias),
    )


def test_without_a_batch_axis_residual_and_mask_have_none_either() -> None:
    layer, g = nk.InstanceNorm1d(5, EPS, affine=True, activation="relu"), generator(4)
    x, r, mask = gaussian((5, 9), g).float(), gaussian((5, 9), g).float(), torch.arange(9) < 6
    expected = layer(x[None], residual=r[None], mask=mask[None])[0]
    assert torch.equal(layer(x, residual=r, mask=mask), expected)


def test_evaluation_uses_the_running_statistics() -> None:
    layer = nk.InstanceNorm2d(5, EPS, affine=True, track_running_stats=True)
    layer(gaussian(SHAPE, generator(5), mean=2.0).float())
    x = gaussian(SHAPE, generator(6)).float()
    expected = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=EPS)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_track_running_stats_switched_off_later_stops_the_update_and_the_use() -> None:
    """As torch: the buffers stay, and every mode normalizes by the input's own statistics."""
    layer, theirs = (m.InstanceNorm2d(5, EPS, MOMENTUM, track_running_stats=True) for m in (nk, torch.nn))
    x = gaussian(SHAPE, generator(7), mean=2.0, std=0.2).float()
    for norm in (layer, theirs):
        norm(x)
        norm.track_running_stats = False
    before = copy.deepcopy(list(layer.buffers()))
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x), theirs.train(training)(x))
    for now, then in zip(layer.buffers(), before, strict=True):
        assert torch.equal(now, then)


def test_where_the_statistics_were_taken_away_evaluation_uses_the_inputs_own() -> None:
    layer, x = nk.InstanceNorm2d(5, EPS, track_running_stats=True).eval(), gaussian(SHAPE, generator(6)).float()
    layer.running_mean = layer.running_var = None
    torch.testing.assert_close(layer(x), F.instance_norm(x, eps=EPS))


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 5, 0), (2, 0, 4)], ids=["no_samples", "no_positions", "no_channels"])
def test_an_empty_batch_moves_and_counts_nothing(shape: tuple[int, ...]) -> None:
    layer = nk.InstanceNorm1d(shape[1], affine=True, track_running_stats=True)
    y = layer(torch.ones(shape).requires_grad_())
    y.sum().backward()
    assert y.shape == shape
    assert layer.num_batches_tracked == 0
    assert torch.equal(layer.running_var, torch.ones(shape[1]))
