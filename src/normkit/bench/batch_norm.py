"""Training batch norm, plain, with ReLU, and with a residual and ReLU: what every CNN block does."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

import normkit as nk
from normkit import reference

from .op import Op, Truth, Unfused, prepared, ranked
from .problem import Problem

EPS = 1e-5


def ours(activation: str | None, training: bool, problem: Problem) -> nn.Module:
    """normkit's layer of the case's rank."""
    layer = getattr(nk, ranked("BatchNorm", problem.case))
    return prepared(layer(problem.weight.numel(), activation=activation), problem, training)


def theirs(activation: str | None, training: bool, problem: Problem) -> nn.Module:
    """torch's layer of the case's rank, with residual and activation after it."""
    layer = getattr(nn, ranked("BatchNorm", problem.case))
    return Unfused(prepared(layer(problem.weight.numel()), problem, training), activation).train(training)


def truth(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Truth:
    """By the batch's own statistics. x: (N, C, *) float64."""
    axes = (0, *range(2, x.dim()))
    y, _, var = reference.batch_norm(x, weight, bias, EPS)
    return Truth(
        y=y,
        xhat=reference.batch_norm(x, None, None, EPS)[0],
        rstd=per_channel((var + EPS).rsqrt(), x),
        gradients=lambda dz: reference.batch_norm_backward_collapsed(dz, x, weight, EPS),
        mean=lambda t: t.mean(axes, keepdim=True),
        parameter_axes=axes,
    )


def per_channel(value: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C, 1, ...), which broadcasts against x."""
    return value.view(1, -1, *[1] * (x.dim() - 2))


OPS = tuple(
    Op(
        name,
        "batch_norm",
        partial(ours, activation, True),
        partial(theirs, activation, True),
        truth,
        residual=residual,
        activation=activation,
    )
    for name, residual, activation in (
        ("batch_norm", False, None),
        ("batch_norm+relu", False, "relu"),
        ("batch_norm+add+relu", True, "relu"),
    )
)
