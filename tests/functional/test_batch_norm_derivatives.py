"""Derivatives of batch norm of every order, and in forward mode, against the formula itself in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import normkit as nk
from tests.cases import EPS, affine, gaussian, generator
from tests.functional.norms import EXACT_BACKENDS, training
from tests.tolerances import assert_equal64

backends = pytest.mark.parametrize("backend", EXACT_BACKENDS)
PIECEWISE_LINEAR = ["relu", "relu6", "leaky_relu", "hardsigmoid"]
SMOOTH = ["silu", "gelu", "sigmoid", "tanh", "hardswish", "elu", "mish"]
Norm = Callable[[Tensor, Tensor, Tensor], Tensor]


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x: (N, C, *). Plain operations, every one of which has right derivatives."""
    axes, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
    mean = x.mean(axes, keepdim=True)
    var = (x - mean).square().mean(axes, keepdim=True)
    return (x - mean) / (var + EPS).sqrt() * weight.reshape(shape) + bias.reshape(shape)


def evaluation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """normkit's batch norm under fixed statistics."""
    mean, var = torch.linspace(-1, 1, x.shape[1]).double(), torch.linspace(0.5, 2, x.shape[1]).double()
    return nk.functional.batch_norm(x, mean, var, weight, bias, False, eps=EPS)


def draw(shape: tuple[int, ...] = (4, 2, 3)) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(3)
    return tuple(t.requires_grad_() for t in (gaussian(shape, g), *affine(shape[1], g)))  # type: ignore[return-value]  # three


@backends
@pytest.mark.parametrize("norm", [training, evaluation])
def test_gradcheck_and_gradgradcheck(norm: Norm, backend: str) -> None:
    with nk.backend(backend):
        torch.autograd.gradcheck(norm, draw())
        torch.autograd.gradgradcheck(norm, draw())


@backends
@pytest.mark.parametrize("activation", ["relu", "silu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
def test_gradgradcheck_through_residual_and_activation(activation: str, with_residual: bool, backend: str) -> None:
    x, weight, bias = draw()
    residual = gaussian(tuple(x.shape), generator(4)).requires_grad_() if with_residual else None

    def norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        return nk.functional.batch_norm(
            x, None, None, weight, bias, True, eps=EPS, residual=residual, activation=activation
        )

    with nk.backend(backend):
        torch.autograd.gradcheck(norm, (x, weight, bias, residual))
        torch.autograd.gradgradcheck(norm, (x, weight, bias, residual))


def nth(norm: Norm, order: int, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Derivatives of order 1 to `order` of a scalar, each of the last one's first element and of its squared sum."""
    x, weight, bias = inputs
    c = torch.arange(1.0, x.numel() + 1, dtype=torch.float64).reshape(x.shape) / x.numel()
    value = (c * norm(x, weight, bias) ** 2).sum()
    found = []
    for _ in range(order):
        gradients = torch.autograd.grad(value, (x, weight, bias), create_graph=True, allow_unused=True)
        kept = [g for g in gradients if g is not None]
        found += [g.detach() for g in kept]
        value = sum((g.reshape(-1)[0] + 0.1 * g.square().sum() for g in kept), torch.zeros(()))
    return found


@backends
def test_four_orders_equal_those_of_the_formula(backend: str) -> None:
    with nk.backend(backend):
        ours = nth(training, 4, draw())
    for i, (a, b) in enumerate(zip(ours, nth(formula, 4, draw()), strict=True)):
        # each order divides by sqrt(var) once more and cancels: 1e3 times the room of one derivative
        assert_equal64(a, b, f"derivative {i}", factor=1e7)


@pytest.mark.parametrize("norm", [training, evaluation])
def test_forward_mode_equals_reverse_mode(norm: Norm) -> None:
    x, weight, bias = (t.detach() for t in draw())
    tangents = [gaussian(tuple(t.shape), generator(i)) for i, t in enumerate((x, weight, bias))]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip((x, weight, bias), tangents, strict=True)]
        got = forward_ad.unpack_dual(norm(*duals)).tangent
    expected = torch.func.jvp(formula if norm is training else norm, (x, weight, bias), tuple(tangents))[1]
    assert got is not None
    assert_equal64(got, expected)


def test_forward_over_forward_and_forward_over_reverse() -> None:
    """jvp of jvp is where PyTorch's batch norm is silently wrong."""
    x, weight, bias = (t.detach() for t in draw())
    v = gaussian(tuple(x.shape), generator(8))

    def second(norm: Norm) -> Tensor:
        def first(x: Tensor) -> Tensor:
            return torch.func.jvp(lambda x: norm(x, weight, bias), (x,), (v,))[1]

        return torch.func.jvp(first, (x,), (v,))[1]

    def mixed(norm: Norm) -> Tensor:
        gradient = torch.func.grad(lambda x: (norm(x, weight, bias) ** 3).sum())
        return torch.func.jvp(gradient, (x,), (v,))[1]

    assert_equal64(second(training), second(formula))
    assert_equal64(mixed(training), mixed(formula))


@backends
def test_the_gradient_of_a_gradient_penalty_in_float32(backend: str) -> None:
    """The usual use of a second derivative, at float32 and a large mean, where cancellation shows."""
    x64 = (gaussian((16, 3, 5), generator(1)) + 50).float().double()

    def penalty(norm: Norm, x: Tensor) -> Tensor:
        weight, bias = torch.ones(3, dtype=x.dtype), torch.zeros(3, dtype=x.dtype)
        (g,) = torch.autograd.grad((norm(x, weight, bias) ** 3).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    with nk.backend(backend):
        got = penalty(training, x64.float().requires_grad_())
    expected = penalty(formula, x64.clone().requires_grad_())
    # a few dozen roundings of float32 on terms as large as the largest gradient
    assert (got.double() - expected).abs().max() <= 64 * 2**-24 * expected.abs().max()


@backends
@pytest.mark.parametrize("activation", [None, *PIECEWISE_LINEAR, *SMOOTH])
def test_a_gradient_with_a_graph_equals_the_fused_one(activation: str | None, backend: str) -> None:
    """create_graph takes the composed operations: both ways must tell the same first derivative."""
    x, weight, bias = draw((6, 3, 4))
    residual = gaussian((6, 3, 4), generator(5)).requires_grad_()
    inputs = (x, weight, bias, residual)

    def gradients(create_graph: bool) -> tuple[Tensor, ...]:
        y = nk.functional.batch_norm(
            x, None, None, weight, bias, True, eps=EPS, residual=residual, activation=activation
        )
        return torch.autograd.grad(y, inputs, torch.linspace(-1, 1, y.numel()).double().reshape(y.shape),
                                   create_graph=create_graph)  # fmt: skip

    with nk.backend(backend):
        for a, b in zip(gradients(False), gradients(True), strict=True):
            assert_equal64(a, b)
