"""Batch norm's reference: four ways to one gradient, torch's float64 layer, and the properties of the formula."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normkit import reference
from normkit.reference._moments import moments
from normkit.reference.batch_norm import channel_axes
from tests.cases import SHAPES, VALUES, Shape, affine, gaussian, generator, random_mask
from tests.reference.derivatives import autograd_of, central_difference
from tests.tolerances import assert_equal64, assert_within

EPS = 1e-5
NAMES = ("dx", "dweight", "dbias")
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
masked = pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])


def draw(shape: Shape, with_mask: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    g = generator(7)
    x, dy = gaussian(shape, g, mean=3.0, std=2.0), gaussian(shape, g)
    weight, bias = affine(shape[1], g)
    return x, dy, weight, bias, random_mask(shape, g) if with_mask else None


@masked
@shapes
def test_step_by_step_equals_collapsed(shape: Shape, with_mask: bool) -> None:
    x, dy, weight, _, mask = draw(shape, with_mask)
    steps = reference.batch_norm_backward(dy, x, weight, EPS, mask)
    collapsed = reference.batch_norm_backward_collapsed(dy, x, weight, EPS, mask)
    for name, a, b in zip(NAMES, steps, collapsed, strict=True):
        assert_equal64(a, b, name)


@masked
@shapes
def test_step_by_step_equals_autograd_of_the_forward(shape: Shape, with_mask: bool) -> None:
    x, dy, weight, bias, mask = draw(shape, with_mask)
    expected = autograd_of(lambda *a: reference.batch_norm(*a, EPS, mask)[0], dy, x, weight, bias)
    for name, a, b in zip(NAMES, reference.batch_norm_backward(dy, x, weight, EPS, mask), expected, strict=True):
        assert_equal64(a, b, name)


@masked
@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 4), (2, 2, 2, 3)], ids=str)
def test_step_by_step_equals_central_differences(shape: Shape, with_mask: bool) -> None:
    x, dy, weight, bias, mask = draw(shape, with_mask)
    got = reference.batch_norm_backward(dy, x, weight, EPS, mask)
    expected = central_difference(lambda *a: reference.batch_norm(*a, EPS, mask)[0], dy, x, weight, bias)
    for name, a, b in zip(NAMES, got, expected, strict=True):
        # h = 1e-5: truncation h^2 * third derivative (at most some hundreds here), rounding 1e-16/h times the sum
        assert_within(a, b, 1e-7, name)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck], ids=["first", "second"])
def test_forward_passes_gradcheck(check: Callable[..., Any]) -> None:
    x, _, weight, bias, mask = draw((3, 2, 2), with_mask=True)
    inputs = [v.requires_grad_() for v in (x, weight, bias)]
    assert check(lambda *a: reference.batch_norm(*a, EPS, mask), inputs)


@shapes
def test_torch_in_float64_agrees(shape: Shape) -> None:
    x, _, weight, bias, _ = draw(shape)
    running_mean, running_var = torch.zeros_like(weight), torch.zeros_like(weight)
    ours, mean, var = reference.batch_norm(x, weight, bias, EPS)
    theirs = F.batch_norm(x, running_mean, running_var, weight, bias, True, 1.0, EPS)
    m = x.numel() // x.shape[1]
    assert_equal64(ours, theirs, "y")
    assert_equal64(mean, running_mean, "mean")
    assert_equal64(var * m / (m - 1), running_var, "unbiased var")


@masked
@shapes
def test_inference_agrees_with_torch_and_autograd(shape: Shape, with_mask: bool) -> None:
    x, dy, weight, bias, mask = draw(shape, with_mask)
    g = generator(3)
    mean, var = gaussian(weight.shape, g), torch.rand(weight.shape, generator=g, dtype=torch.float64)
    y = reference.batch_norm_inference(x, mean, var, weight, bias, EPS, mask)
    theirs = F.batch_norm(x, mean, var, weight, bias, False, 0.0, EPS)
    keep = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.unsqueeze(1).expand_as(x)
    assert_equal64(y, theirs * keep, "y")
    got = reference.batch_norm_inference_backward(dy, x, mean, var, weight, EPS, mask)
    expected = autograd_of(
        lambda x, w, b: reference.batch_norm_inference(x, mean, var, w, b, EPS, mask), dy, x, weight, bias
    )
    for name, a, b in zip(NAMES, got, expected, strict=True):
        assert_equal64(a, b, name)


@pytest.mark.parametrize("shape", [(6, 3), (3, 4, 5), (2, 3, 4, 4)], ids=str)
def test_mask_equals_running_on_the_real_values_alone(shape: Shape) -> None:
    x, dy, weight, bias, mask = draw(shape, with_mask=True)
    assert mask is not None
    kept = x.movedim(1, -1)[mask]  # (m, C)
    y, mean, var = reference.batch_norm(x, weight, bias, EPS, mask)
    y_alone, mean_alone, var_alone = reference.batch_norm(kept, weight, bias, EPS)
    assert_equal64(y.movedim(1, -1)[mask], y_alone, "y")
    assert_equal64(mean, mean_alone, "mean")
    assert_equal64(var, var_alone, "var")
    assert not y.movedim(1, -1)[~mask].any()
    dx, dweight, dbias = reference.batch_norm_backward(dy, x, weight, EPS, mask)
    alone = reference.batch_norm_backward(dy.movedim(1, -1)[mask], kept, weight, EPS)
    assert_equal64(dx.movedim(1, -1)[mask], alone[0], "dx")
    assert not dx.movedim(1, -1)[~mask].any()
    assert_equal64(dweight, alone[1], "dweight")
    assert_equal64(dbias, alone[2], "dbias")


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e300], ids=str)
def test_values_under_the_mask_never_leak(poison: float) -> None:
    x, dy, weight, bias, mask = draw((3, 4, 5), with_mask=True)
    hidden = ~mask.unsqueeze(1).expand_as(x)
    bad_x, bad_dy = x.masked_fill(hidden, poison), dy.masked_fill(hidden, poison)
    clean = (
        *reference.batch_norm(x, weight, bias, EPS, mask),
        *reference.batch_norm_backward(dy, x, weight, EPS, mask),
    )
    dirty = (
        *reference.batch_norm(bad_x, weight, bias, EPS, mask),
        *reference.batch_norm_backward(bad_dy, bad_x, weight, EPS, mask),
    )
    for a, b in zip(dirty, clean, strict=True):
        assert_within(a, b, 0.0)


def test_mask_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a mask of shape \(3, 1, 5\)"):
        reference.batch_norm(torch.ones(3, 4, 5), None, None, EPS, torch.ones(3, 4, dtype=torch.bool))


def test_nothing_kept_gives_zeros() -> None:
    x, dy, weight, bias, _ = draw((3, 4, 5))
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    for value in (
        *reference.batch_norm(x, weight, bias, EPS, nothing),
        *reference.batch_norm_backward(dy, x, weight, EPS, nothing),
    ):
        assert_within(value, torch.zeros_like(value), 0.0)


# Properties of the formula.


@shapes
def test_input_gradient_sums_to_zero(shape: Shape) -> None:
    x, dy, weight, _, _ = draw(shape)
    dx, _, _ = reference.batch_norm_backward(dy, x, weight, EPS)
    total = dx.sum(channel_axes(x))
    assert_within(total, torch.zeros_like(total), 1e-11 * dx.abs().sum().item() + 1e-12, "sum(dx)")


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-1], ids=str)
@shapes
def test_input_gradient_is_orthogonal_to_xhat_but_for_eps(shape: Shape, eps: float) -> None:
    # sum(xhat^2) = m * var/(var + eps), not m. So sum(dx*xhat) = weight*rstd*dweight*(1 - var/(var + eps))
    #                                                          = weight*rstd^3*dweight*eps, and 0 at eps = 0.
    x, dy, weight, _, _ = draw(shape)
    dx, dweight, _ = reference.batch_norm_backward(dy, x, weight, eps)
    axes = channel_axes(x)
    _, var, centred = moments(x, axes)
    rstd = (var + eps) ** -0.5
    total = (dx * centred * rstd).sum(axes)
    expected = weight * rstd.flatten() ** 3 * dweight * eps
    # The sum cancels; what remains of rounding is relative to its terms.
    assert_within(total, expected, 1e-12 * (dx.abs() * (centred * rstd).abs()).sum(axes) + 1e-13)


@pytest.mark.parametrize("values", [v for v in VALUES if v != "constant_channel"])
def test_output_has_mean_bias_and_std_weight(values: str) -> None:
    g = generator(11)
    x = VALUES[values]((8, 3, 16), g)
    weight, bias = affine(3, g)
    y, _, _ = reference.batch_norm(x, weight, bias, eps=0.0)
    assert_within(y.mean((0, 2)), bias, 1e-13 * (1 + bias.abs()), "mean of y")
    assert_within(y.std((0, 2), correction=0), weight.abs(), 1e-13, "std of y")


def test_constant_channel_is_exactly_the_bias() -> None:
    g = generator(5)
    x = VALUES["constant_channel"]((8, 3, 17), g)
    weight, bias = affine(3, g)
    y, _, var = reference.batch_norm(x, weight, bias, EPS)
    assert var[0] < 1e-33
    assert_equal64(y[:, 0], bias[0].expand(8, 17), factor=4)


def test_deviations_at_a_large_mean_are_exact_beyond_the_mean_itself() -> None:
    # The mean of these is no float64, and half an ulp of 1e6 is 5.8e-11: more than u times the small deviations.
    x = (1e6 + torch.tensor([-2.0, -1.0, 0.0, 0.0625, 1.0, 1.5, 0.1], dtype=torch.float32)).double()
    exact = [Fraction(v) for v in x.tolist()]
    mean = sum(exact, Fraction(0)) / len(exact)
    _, _, centred = moments(x[:, None], (0,))
    expected = torch.tensor([float(v - mean) for v in exact], dtype=torch.float64)
    assert_within(centred[:, 0], expected, 4 * 2.0**-53, "x - mean")  # two roundings of values up to 2


def test_shift_and_permutation_of_the_batch_change_nothing() -> None:
    x, _, weight, bias, _ = draw((6, 3, 5))
    y, mean, _ = reference.batch_norm(x, weight, bias, EPS)
    shifted, mean_shifted, _ = reference.batch_norm(x + 1.5, weight, bias, EPS)
    assert_equal64(shifted, y)
    assert_equal64(mean_shifted, mean + 1.5)
    order = torch.randperm(6, generator=generator(1))
    assert_equal64(reference.batch_norm(x[order], weight, bias, EPS)[0], y[order])
