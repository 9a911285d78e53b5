"""Batch renormalization: its two ends (batch norm, inference), its limits, its gradient with r and d held."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from normkit import reference
from tests.cases import affine, gaussian, generator, random_mask
from tests.reference.derivatives import autograd_of, central_difference
from tests.tolerances import assert_equal64, assert_within

EPS = 1e-3
LOOSE = 1e6  # limits that nothing reaches


def draw() -> tuple[Tensor, ...]:
    """x, dy: (5, 3, 4); weight, bias, running_mean, running_var: (3,), far enough off that usual limits bite."""
    g = generator(5)
    x, dy = gaussian((5, 3, 4), g, mean=2.0), gaussian((5, 3, 4), g)
    running_mean = torch.tensor([2.0, -1.0, 9.0], dtype=torch.float64)
    running_var = torch.tensor([1.1, 0.05, 30.0], dtype=torch.float64)
    return x, dy, *affine(3, g), running_mean, running_var


def test_without_limits_the_output_is_that_of_inference() -> None:
    x, _, weight, bias, mean, var = draw()
    y, _, _ = reference.batch_renorm(x, mean, var, weight, bias, EPS, LOOSE, LOOSE)
    assert_equal64(y, reference.batch_norm_inference(x, mean, var, weight, bias, EPS))


def test_at_r_max_1_and_d_max_0_it_is_batch_norm_forward_and_backward() -> None:
    x, dy, weight, bias, mean, var = draw()
    for a, b in zip(
        (
            *reference.batch_renorm(x, mean, var, weight, bias, EPS, 1.0, 0.0),
            *reference.batch_renorm_backward(dy, x, mean, var, weight, EPS, 1.0, 0.0),
        ),
        (
            *reference.batch_norm(x, weight, bias, EPS),
            *reference.batch_norm_backward(dy, x, weight, EPS),
        ),
        strict=True,
    ):
        assert_equal64(a, b)


def test_r_and_d_are_clipped_on_both_sides() -> None:
    one, eps = torch.ones(4, dtype=torch.float64), 0.0
    var = torch.tensor([100.0, 0.01, 4.0, 1.0], dtype=torch.float64)  # sigma_B 10, 0.1, 2, 1 against sigma 1
    mean = torch.tensor([10.0, -10.0, 0.5, 0.0], dtype=torch.float64)
    r, d = reference.correction(mean, var, 0 * one, one, eps, 3.0, 5.0)
    assert_equal64(r, torch.tensor([3.0, 1 / 3, 2.0, 1.0], dtype=torch.float64))
    assert_equal64(d, torch.tensor([5.0, -5.0, 0.5, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("r_max", "d_max"), [(3.0, 5.0), (1.5, 0.5), (LOOSE, LOOSE)], ids=str)
def test_backward_equals_autograd(r_max: float, d_max: float, with_mask: bool) -> None:
    x, dy, weight, bias, mean, var = draw()
    mask = random_mask(x.shape, generator(1)) if with_mask else None
    got = reference.batch_renorm_backward(dy, x, mean, var, weight, EPS, r_max, d_max, mask)
    expected = autograd_of(
        lambda x, w, b: reference.batch_renorm(x, mean, var, w, b, EPS, r_max, d_max, mask)[0], dy, x, weight, bias
    )
    for name, a, b in zip(("dx", "dweight", "dbias"), got, expected, strict=True):
        assert_equal64(a, b, name)


def test_backward_equals_central_differences_with_r_and_d_held() -> None:
    x, dy, weight, bias, mean, var = draw()
    _, batch_mean, batch_var = reference.batch_norm(x, None, None, EPS)
    r, d = reference.correction(batch_mean, batch_var, mean, var, EPS, 3.0, 5.0)

    def held(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        # weight*(xhat_B*r + d) + bias is batch norm with other parameters once r and d are numbers.
        return reference.batch_norm(x, w * r, w * d + b, EPS)[0]

    got = reference.batch_renorm_backward(dy, x, mean, var, weight, EPS, 3.0, 5.0)
    for name, a, b in zip(("dx", "dweight", "dbias"), got, central_difference(held, dy, x, weight, bias), strict=True):
        assert_within(a, b, 1e-7, name)  # see test_batch_norm.py


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [
        (0, 1.0, 0.0),
        (5_000, 1.0, 0.0),
        (15_000, 1 + 2 * 10 / 35, 2.5),
        (25_000, 1 + 2 * 20 / 35, 5.0),
        (40_000, 3.0, 5.0),
        (10**9, 3.0, 5.0),
    ],
    ids=str,
)
def test_warm_up_schedule(step: int, r_max: float, d_max: float) -> None:
    got = reference.limits(step)
    assert math.isclose(got[0], r_max)
    assert math.isclose(got[1], d_max)
