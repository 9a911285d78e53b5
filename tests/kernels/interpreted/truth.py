"""What Triton's kernels are held to: batch norm with residual, activation and mask in float64, and the contract's
bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import normkit as nk
from normkit import contract
from normkit._activation import Activation, resolve
from normkit.reference._moments import count, moments, select, spatial_mask, total
from normkit.reference.batch_norm import channel_axes, per_channel
from tests.cases import EPS
from tests.tolerances import assert_within


@dataclass
class Case:
    """One call. x, dy, residual: (N, C, *); weight, bias, mean, var: (C,); mask: (N, *). mean and var: evaluation by
    these."""

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    mask: Tensor | None = None

    def tensors(self) -> list[Tensor | None]:
        return [self.x, self.weight, self.bias, self.residual]


def run(
    case: Case, dy: Tensor, norm: Callable[..., Tensor] = nk.functional.batch_norm, **options: Any
) -> tuple[Tensor, list[Tensor | None]]:
    """(y, gradients of x, weight, bias, residual) by Triton's kernels. norm: batch norm or one of its kind."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in case.tensors()]
    x, weight, bias, residual = leaves
    with nk.backend("triton"):
        y = norm(
            x, case.mean, case.var, weight, bias, case.mean is None, eps=EPS, residual=residual,
            activation=case.activation, mask=case.mask, **options,
        )  # fmt: skip
        wanted = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(y, wanted, dy))
    return y.detach(), [None if leaf is None else next(found) for leaf in leaves]


NAMES = ("y", "dx", "dweight", "dbias", "dresidual")
Truths = dict[str, tuple[Tensor, Tensor]]  # by name: float64, and how far off a result may be


def check(case: Case, dy: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Run it, and raise unless y and every gradient lie within the bounds around float64."""
    y, gradients = run(case, dy)
    compare([y, *gradients], truths(case, dy))
    return y, gradients


def compare(found: list[Tensor | None], expected: Truths) -> None:
    """Raise unless each result, in the order of NAMES, lies within its bound."""
    for name, actual in zip(NAMES, found, strict=True):
        if actual is not None:
            assert_within(actual, *expected[name], name)


def truths(case: Case, dy: Tensor) -> Truths:
    """Float64's results of a case, and their bounds."""
    u = contract.unit_roundoff(case.x.dtype)
    keep = spatial_mask(case.mask, case.x)
    x, dy64 = (select(t.double(), keep) for t in (case.x, dy))
    axes, training = channel_axes(x), case.mean is None
    weight, bias = per_channel(_wide(case.weight), x, 1.0), per_channel(_wide(case.bias), x, 0.0)
    residual = torch.zeros_like(x) if case.residual is None else select(case.residual.double(), keep)
    if training:
        _, var, centred = moments(x, axes, keep)
    else:
        var, centred = per_channel(case.var.double(), x, 1.0), x - per_channel(case.mean.double(), x, 0.0)
    rstd = (var + EPS).rsqrt()
    xhat = select(centred * rstd, keep)
    z = xhat * weight + bias + residual
    activation = resolve(case.activation)
    slack = contract.output_bound(xhat, weight, bias, 2.0**-24, residual) + contract.float32_output_bound(xhat, weight)
    found = {"y": (select(activation.function(z), keep), _through(activation.function, z, slack, u))}

    g, g_slack = _slope(activation, z, slack)
    g, g_slack = g * dy64, g_slack * dy64.abs()
    values = count(x, axes, keep)

    def average(t: Tensor) -> Tensor:
        return total(t, axes, keep) / values if training else torch.zeros_like(t)

    dx = select(weight * rstd * (g - average(g) - xhat * average(g * xhat)), keep)
    scale, magnitude = weight.abs() * rstd, g.abs() + g_slack
    bound = contract.input_gradient_bound(g, xhat, rstd, average, max(u, 2.0**-24)) * weight.abs()
    bound = bound + contract.float32_gradient_bound(magnitude, xhat, scale, average)
    bound = bound + scale * (g_slack + average(g_slack) + xhat.abs() * average(g_slack * xhat.abs()))
    found["dx"] = dx, bound
    for name, parameter, terms in (("dweight", case.weight, g * xhat), ("dbias", case.bias, g)):
        if parameter is not None:
            allowed = contract.parameter_gradient_bound(terms, axes, contract.unit_roundoff(parameter.dtype))
            lost = contract.float32_parameter_bound(magnitude, xhat, axes) + (g_slack * (1 + xhat.abs())).sum(axes)
            found[name] = terms.sum(axes), allowed + lost
    found["dresidual"] = g, contract.residual_gradient_bound(g, u) + g_slack + 2.0**-20 * g.abs()
    return found


def _wide(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _through(function: Callable[[Tensor], Tensor], z: Tensor, slack: Tensor, u: float) -> Tensor:
    """What an error of z, and 8 roundings of the value, do behind the activation. The tail of gelu loses a rounding of
    float32 of its argument."""
    moved = torch.maximum((function(z + slack) - function(z)).abs(), (function(z - slack) - function(z)).abs())
    return moved + 8 * u * function(z).abs() + 8 * 2.0**-24 * z.abs()


def _slope(activation: Activation, z: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative at z, and how far it is off where z is off by `slack`; 0 and 1 at a kink that is that near."""

    def at(z: Tensor) -> Tensor:
        leaf = z.detach().requires_grad_()
        (found,) = torch.autograd.grad(activation.function(leaf).sum(), leaf)
        return found

    slope = at(z)
    off = torch.maximum((at(z + slack) - slope).abs(), (at(z - slack) - slope).abs())
    return slope, off + (0 if activation.code == 0 else 16 * 2.0**-24 * (1 + z.abs()))
