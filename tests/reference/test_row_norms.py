"""Group, instance, layer and RMS norm against torch in float64, against each other, and their own invariances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from normkit import reference
from tests.cases import GROUPS, SHAPES, Shape, affine, gaussian, generator, random_mask
from tests.tolerances import assert_equal64

EPS = 1e-5
SPATIAL = {name: shape for name, shape in SHAPES.items() if torch.Size(shape[2:]).numel() > 1 and len(shape) > 2}
LEADING: dict[str, tuple[Shape, int]] = {
    "rows": ((5, 9), 1),
    "tokens": ((2, 3, 16), 1),
    "images": ((2, 3, 4, 5), 3),
    "one_value": ((4, 1), 1),
}


@pytest.mark.parametrize(("shape", "groups"), GROUPS.values(), ids=GROUPS)
def test_group_norm_agrees_with_torch(shape: Shape, groups: int) -> None:
    g = generator(1)
    x, (weight, bias) = gaussian(shape, g, mean=5.0), affine(shape[1], g)
    assert_equal64(reference.group_norm(x, groups, weight, bias, EPS)[0], F.group_norm(x, groups, weight, bias, EPS))


@pytest.mark.parametrize("shape", SPATIAL.values(), ids=SPATIAL)
def test_instance_norm_agrees_with_torch_running_statistics_too(shape: Shape) -> None:
    g = generator(1)
    x, (weight, bias) = gaussian(shape, g, mean=5.0), affine(shape[1], g)
    running_mean, running_var = torch.zeros_like(weight), torch.zeros_like(weight)
    y, mean, var = reference.instance_norm(x, weight, bias, EPS)
    assert_equal64(y, F.instance_norm(x, running_mean, running_var, weight, bias, True, 1.0, EPS))
    moved = reference.running_instance_statistics(mean, var, torch.Size(shape[2:]).numel())
    assert_equal64(moved[0], running_mean)
    assert_equal64(moved[1], running_var)


@pytest.mark.parametrize(("shape", "k"), LEADING.values(), ids=LEADING)
def test_layer_norm_agrees_with_torch(shape: Shape, k: int) -> None:
    g = generator(1)
    x, normalized = gaussian(shape, g, mean=5.0), shape[-k:]
    weight, bias = gaussian(normalized, g), gaussian(normalized, g)
    y, mean, var = reference.layer_norm(x, normalized, weight, bias, EPS)
    assert_equal64(y, F.layer_norm(x, normalized, weight, bias, EPS))
    assert mean.shape == var.shape == shape[:-k]


@pytest.mark.parametrize(("shape", "k"), LEADING.values(), ids=LEADING)
def test_rms_norm_agrees_with_torch(shape: Shape, k: int) -> None:
    g = generator(1)
    x, normalized = gaussian(shape, g, mean=5.0), shape[-k:]
    weight = gaussian(normalized, g)
    y, mean_square = reference.rms_norm(x, normalized, weight, EPS)
    assert_equal64(y, F.rms_norm(x, normalized, weight, EPS))
    assert mean_square.shape == shape[:-k]


@pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("shape", SPATIAL.values(), ids=SPATIAL)
def test_as_many_groups_as_channels_is_instance_norm(shape: Shape, with_mask: bool) -> None:
    g = generator(6)
    x, (weight, bias) = gaussian(shape, g), affine(shape[1], g)
    mask = random_mask(shape, g) if with_mask else None
    for a, b in zip(
        reference.group_norm(x, shape[1], weight, bias, EPS, mask),
        reference.instance_norm(x, weight, bias, EPS, mask),
        strict=True,
    ):
        assert_equal64(a, b)


def test_one_group_without_affine_is_layer_norm_of_the_sample() -> None:
    x = gaussian((3, 4, 2, 5), generator(6))
    y, mean, var = reference.group_norm(x, 1, None, None, EPS)
    y_layer, mean_layer, var_layer = reference.layer_norm(x, (4, 2, 5), None, None, EPS)
    assert_equal64(y, y_layer)
    assert_equal64(mean[:, 0], mean_layer)
    assert_equal64(var[:, 0], var_layer)


def test_instance_norm_is_batch_norm_of_one_sample() -> None:
    g = generator(6)
    x, (weight, bias) = gaussian((3, 4, 5), g), affine(4, g)
    alone = [reference.batch_norm(x[i : i + 1], weight, bias, EPS)[0] for i in range(3)]
    assert_equal64(reference.instance_norm(x, weight, bias, EPS)[0], torch.cat(alone))


@pytest.mark.parametrize("groups", [1, 2, 4], ids=str)
def test_masked_group_norm_of_padded_sequences_is_that_of_each_sequence(groups: int) -> None:
    g = generator(8)
    x, (weight, bias), lengths = gaussian((3, 4, 7), g), affine(4, g), [7, 3, 5]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    y, _, _ = reference.group_norm(x, groups, weight, bias, EPS, mask)
    for i, length in enumerate(lengths):
        alone, _, _ = reference.group_norm(x[i : i + 1, :, :length], groups, weight, bias, EPS)
        assert_equal64(y[i : i + 1, :, :length], alone)
        assert not y[i, :, length:].any()


def test_layer_norm_2d_is_layer_norm_with_channels_moved_last() -> None:
    g = generator(8)
    x, (weight, bias) = gaussian((2, 5, 3, 4), g), affine(5, g)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (5,), weight, bias, EPS).permute(0, 3, 1, 2)
    y, mean, _ = reference.layer_norm_2d(x, weight, bias, EPS)
    assert_equal64(y, expected)
    assert mean.shape == (2, 3, 4)


def test_layer_norm_ignores_shift_and_scale_rms_norm_only_scale() -> None:
    x = gaussian((3, 8), generator(8))
    assert_equal64(
        reference.layer_norm(2 * x + 5, (8,), None, None, 0.0)[0], reference.layer_norm(x, (8,), None, None, 0.0)[0]
    )
    assert_equal64(reference.rms_norm(2 * x, (8,), None, 0.0)[0], reference.rms_norm(x, (8,), None, 0.0)[0])
    shifted = reference.rms_norm(x + 5, (8,), None, 0.0)[0] - reference.rms_norm(x, (8,), None, 0.0)[0]
    assert shifted.abs().max() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: reference.group_norm(x, 4, None, None, EPS), r"divisible by num_groups \(got 6 and 4\)"),
        (lambda x: reference.layer_norm(x, (4,), None, None, EPS), r"shape ends in \(4,\) \(got \(2, 6, 5\)\)"),
        (
            lambda x: reference.layer_norm(x, (5,), None, None, EPS, torch.ones(2, 5, dtype=torch.bool)),
            r"leading shape \(2, 6\) \(got \(2, 5\)\)",
        ),
    ],
    ids=["groups", "normalized_shape", "mask"],
)
def test_wrong_arguments_are_refused(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 6, 5))
