"""What normalization does to the weights before it: the tutorials' claims as exact statements."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit import reference
from tests.cases import GROUPS, Shape, affine, gaussian, generator
from tests.reference.derivatives import autograd_of
from tests.tolerances import assert_equal64, assert_within

NO_EPS = 0.0  # scale invariance is exact only without eps
SCALES = pytest.mark.parametrize("a", [0.01, 0.5, 3.0, 1000.0], ids=str)


def linear_then_batch_norm(u: Tensor, w: Tensor) -> Tensor:
    """BN(u w): u: (N, K), w: (K, C)."""
    return reference.batch_norm(u @ w, None, None, NO_EPS)[0]


def draw() -> tuple[Tensor, Tensor, Tensor]:
    g = generator(3)
    return gaussian((12, 5), g), gaussian((5, 4), g), gaussian((12, 4), g)


@SCALES
def test_scaling_the_weights_changes_no_output(a: float) -> None:
    u, w, _ = draw()
    assert_equal64(linear_then_batch_norm(u, a * w), linear_then_batch_norm(u, w))


def test_a_negative_scale_turns_the_sign() -> None:
    u, w, _ = draw()
    assert_equal64(linear_then_batch_norm(u, -2 * w), -linear_then_batch_norm(u, w))


@SCALES
def test_scaling_the_weights_changes_no_gradient_below_and_divides_their_own(a: float) -> None:
    u, w, dy = draw()
    du, dw = autograd_of(linear_then_batch_norm, dy, u, w)
    du_scaled, dw_scaled = autograd_of(linear_then_batch_norm, dy, u, a * w)
    assert_equal64(du_scaled, du, "d/du")
    assert_equal64(dw_scaled * a, dw, "d/d(a w) = (1/a) d/dw")


def test_the_gradient_is_orthogonal_to_the_weights_of_each_channel() -> None:
    u, w, dy = draw()
    _, dw = autograd_of(linear_then_batch_norm, dy, u, w)
    inner = (w * dw).sum(0)
    assert_within(inner, torch.zeros_like(inner), 1e-13 * (w * dw).abs().sum(0), "<w, dL/dw>")


def test_a_gradient_step_can_only_lengthen_the_weights() -> None:
    # Pythagoras: |w - lr*dw|^2 = |w|^2 + lr^2 |dw|^2, because dw is orthogonal to w.
    u, w, dy = draw()
    _, dw = autograd_of(linear_then_batch_norm, dy, u, w)
    stepped = ((w - 0.1 * dw) ** 2).sum(0)
    assert_equal64(stepped, (w**2).sum(0) + 0.01 * (dw**2).sum(0))
    assert (stepped > (w**2).sum(0)).all()


@pytest.mark.parametrize(("shape", "groups"), GROUPS.values(), ids=GROUPS)
def test_group_norm_ignores_the_rest_of_the_batch(shape: Shape, groups: int) -> None:
    g = generator(2)
    x, dy = gaussian(shape, g), gaussian(shape, g)
    weight, bias = affine(shape[1], g)
    y, mean, var = reference.group_norm(x, groups, weight, bias, 1e-5)
    dx, dweight, _ = reference.group_norm_backward(dy, x, groups, weight, 1e-5)
    parts = [slice(i, i + 1) for i in range(shape[0])]
    alone = [reference.group_norm(x[i], groups, weight, bias, 1e-5) for i in parts]
    gradients = [reference.group_norm_backward(dy[i], x[i], groups, weight, 1e-5) for i in parts]
    for result, whole in enumerate((y, mean, var)):
        assert_equal64(torch.cat([sample[result] for sample in alone]), whole, f"result {result}")
    assert_equal64(torch.cat([sample[0] for sample in gradients]), dx, "dx")
    assert_equal64(torch.stack([sample[1] for sample in gradients]).sum(0), dweight, "dweight")


# A deep chain y = x W1 W2 ... Wm, with and without batch norm after each factor.


def chain(x: Tensor, weights: list[Tensor], normalized: bool) -> Tensor:
    for w in weights:
        x = x @ w
        if normalized:
            x, _, _ = reference.batch_norm(x, None, None, NO_EPS)
    return x


def overshoot(weights: list[Tensor], normalized: bool, lr: float = 1e-4) -> float:
    """|what a gradient step changes in the loss / what the first order promises - 1|."""
    g = generator(9)
    x, dy = gaussian((32, 4), g), gaussian((32, 4), g) / 32
    gradients = autograd_of(lambda *w: chain(x, list(w), normalized), dy, *weights)
    promised = -lr * sum((dw**2).sum() for dw in gradients)
    after = [w - lr * dw for w, dw in zip(weights, gradients, strict=True)]
    change = ((chain(x, after, normalized) - chain(x, weights, normalized)) * dy).sum()
    return abs(float(change / promised) - 1)


def factors(depth: int, a: float) -> list[Tensor]:
    g = generator(4)
    return [a * torch.linalg.qr(gaussian((4, 4), g)).Q for _ in range(depth)]


def test_without_batch_norm_a_step_overshoots_more_with_depth_and_with_larger_weights() -> None:
    by_depth = [overshoot(factors(depth, 2.0), normalized=False) for depth in (2, 4, 8, 16)]
    by_scale = [overshoot(factors(8, a), normalized=False) for a in (1.0, 1.5, 2.0, 3.0)]
    assert by_depth == sorted(by_depth)
    assert by_scale == sorted(by_scale)
    assert by_depth[-1] > 0.5  # at depth 16 the first order no longer tells what the step does


def test_with_batch_norm_a_step_keeps_its_promise_and_larger_weights_make_it_safer() -> None:
    # dW shrinks as 1/a while W grows as a: the step is a^2 times smaller relative to its weights.
    by_scale = [overshoot(factors(8, a), normalized=True) for a in (1.0, 1.5, 2.0, 3.0)]
    assert by_scale == sorted(by_scale, reverse=True)
    assert overshoot(factors(16, 2.0), normalized=True) < 1e-3 < overshoot(factors(16, 2.0), normalized=False)


def test_a_chain_of_scalars_overshoots_by_exactly_the_product_terms() -> None:
    # y = w1 w2 w3; after w_i - lr*g_i, the terms of second and third order in lr are all that the promise left out.
    w = torch.tensor([1.5, -2.0, 0.7], dtype=torch.float64)
    lr, g = 0.3, w.prod() / w
    after = (w - lr * g).prod()
    first = w.prod() - lr * (g**2).sum()
    second = lr**2 * (g[0] * g[1] * w[2] + g[0] * w[1] * g[2] + w[0] * g[1] * g[2])
    third = -(lr**3) * g.prod()
    assert_equal64(after - first, second + third)
    assert (second + third).abs() > 0.1
