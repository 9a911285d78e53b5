"""Derivatives of every norm: to the fourth order, mixed, forward over forward and forward over reverse.

The truth is autograd through the paper's formula written as plain torch operations, in float64. PyTorch's own batch
norm is wrong from the third derivative on and in nested forward mode.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jvp

import normkit as nk
from normkit.kernels import native

f = nk.functional
Function = Callable[..., Tensor]
X = (3, 4, 5)
EPS = 0.1  # large: high derivatives scale with powers of 1/sqrt(var + eps), and rounding with them


def plain(x: Tensor, weight: Tensor, bias: Tensor, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """The formula, statistics over `dims`; parameters laid out in `shape`."""
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    return (x - mean) / (var + EPS).sqrt() * weight.reshape(shape) + bias.reshape(shape)


def plain_group(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    grouped = plain(x.reshape(3, 2, 2, 5), torch.ones(()), torch.zeros(()), (2, 3), ())
    return grouped.reshape(X) * weight.reshape(4, 1) + bias.reshape(4, 1)


def plain_rms(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight + 0 * bias.sum()


# name -> (ours, the formula, size of the parameters)
NORMS: dict[str, tuple[Function, Function, int]] = {
    "batch_norm": (
        lambda x, w, b: f.batch_norm(x, None, None, w, b, True, eps=EPS),
        lambda x, w, b: plain(x, w, b, (0, 2), (4, 1)),
        4,
    ),
    "batch_norm_eval": (
        lambda x, w, b: f.batch_norm(x, torch.ones(4).double(), torch.full((4,), 2.0).double(), w, b, eps=EPS),
        lambda x, w, b: (x - 1) / (2 + EPS) ** 0.5 * w.reshape(4, 1) + b.reshape(4, 1),
        4,
    ),
    "instance_norm": (
        lambda x, w, b: f.instance_norm(x, None, None, w, b, eps=EPS),
        lambda x, w, b: plain(x, w, b, (2,), (4, 1)),
        4,
    ),
    "group_norm": (lambda x, w, b: f.group_norm(x, 2, w, b, eps=EPS), plain_group, 4),
    "layer_norm": (lambda x, w, b: f.layer_norm(x, (5,), w, b, EPS), lambda x, w, b: plain(x, w, b, (2,), (5,)), 5),
    "rms_norm": (lambda x, w, b: f.rms_norm(x, (5,), w, EPS) + 0 * b.sum(), plain_rms, 5),
}
SMOOTH = ["batch_norm", "instance_norm", "group_norm"]
each_norm = pytest.mark.parametrize("name", NORMS)


def values(name: str) -> list[Tensor]:
    g = torch.Generator().manual_seed(11)
    sizes = [X, (NORMS[name][2],), (NORMS[name][2],)]
    return [torch.randn(size, generator=g, dtype=torch.float64) for size in sizes]


def scalar(y: Tensor) -> Tensor:
    """A function of the output whose derivatives of all orders are not zero."""
    return (y * torch.linspace(0.3, 1.1, y.numel(), dtype=y.dtype).reshape(y.shape)).sin().sum()


def chain(function: Function, arguments: list[Tensor], order: int) -> list[Tensor]:
    """The first to the `order`-th derivatives: each is the gradient of the sum of squares of the one before."""
    leaves = [a.clone().requires_grad_() for a in arguments]
    value, found = scalar(function(*leaves)), []
    for _ in range(order):
        gradients = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        found += [g.detach() for g in gradients if g is not None]
        value = sum((g.square().sum() for g in gradients if g is not None), torch.zeros(()).double())
    return found


def assert_near(actual: Tensor, expected: Tensor) -> None:
    # a few hundred float64 roundings at each of four orders: 1e-9 of the largest value leaves three digits
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("backend", ["native", "composed"] if native.available() else ["composed"])
@each_norm
def test_four_orders_of_reverse_mode_are_those_of_the_formula(name: str, backend: str) -> None:
    ours, formula, _ = NORMS[name]
    with nk.backend(backend):
        found = chain(ours, values(name), 4)
    expected = chain(formula, values(name), 4)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b)


@each_norm
def test_forward_mode_nested_three_times_is_that_of_the_formula(name: str) -> None:
    x, weight, bias = values(name)
    tangents = [torch.randn(X, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]

    def nested(function: Function, depth: int) -> Callable[[Tensor], Tensor]:
        if depth == 0:
            return lambda x: scalar(function(x, weight, bias))
        inner = nested(function, depth - 1)
        return lambda x: jvp(inner, (x,), (tangents[depth - 1],))[1]

    for depth in (1, 2, 3):
        assert_near(nested(NORMS[name][0], depth)(x), nested(NORMS[name][1], depth)(x))


@each_norm
def test_forward_over_reverse_is_that_of_the_formula(name: str) -> None:
    x, weight, bias = values(name)

    def hessian(function: Function) -> Tensor:
        return jacfwd(torch.func.grad(lambda x: scalar(function(x, weight, bias))))(x)

    assert_near(hessian(NORMS[name][0]), hessian(NORMS[name][1]))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu", "tanh", "mish"])
@pytest.mark.parametrize("name", SMOOTH)
def test_two_orders_through_residual_and_activation(name: str, activation: str) -> None:
    x, weight, bias = values(name)
    residual = torch.randn(X, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    apply = getattr(torch.nn.functional, activation)
    extras = {"eps": EPS, "activation": activation}
    calls: dict[str, Function] = {
        "batch_norm": lambda x, w, b, r: f.batch_norm(x, None, None, w, b, True, residual=r, **extras),
        "instance_norm": lambda x, w, b, r: f.instance_norm(x, None, None, w, b, residual=r, **extras),
        "group_norm": lambda x, w, b, r: f.group_norm(x, 2, w, b, residual=r, **extras),
    }
    found = chain(calls[name], [x, weight, bias, residual], 2)
    expected = chain(lambda x, w, b, r: apply(NORMS[name][1](x, w, b) + r), [x, weight, bias, residual], 2)
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b)


def test_torchs_third_derivative_of_batch_norm_is_wrong_and_ours_is_not() -> None:
    """Why the fused backward is not differentiated. If this fails on torch's side, a note in the docs can go."""

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(x, None, None, weight, bias, True, eps=EPS)

    arguments = values("batch_norm")
    if torch.__version__ >= (2, 14):  # type: ignore[operator]  # it owns up to it
        with pytest.raises(RuntimeError, match=r"does not support 3rd\+ order derivatives"):
            chain(theirs, arguments, 3)
        return
    expected, found = chain(NORMS["batch_norm"][1], arguments, 3), chain(theirs, arguments, 3)
    worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    assert worst > 1e-2
