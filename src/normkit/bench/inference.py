"""Batch norm in evaluation, without gradients: what a served model runs where nothing was folded."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from normkit import reference

from . import batch_norm
from .batch_norm import EPS, per_channel
from .op import Op, Truth
from .problem import Problem


def truth(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Truth:
    """By given statistics. x: (N, C, *), mean, var: (C,), float64."""
    return Truth(
        y=reference.batch_norm_inference(x, mean, var, weight, bias, EPS),
        xhat=reference.batch_norm_inference(x, mean, var, None, None, EPS),
        rstd=per_channel((var + EPS).rsqrt(), x),
        gradients=lambda dz: reference.batch_norm_inference_backward(dz, x, mean, var, weight, EPS),
        mean=lambda t: t.new_zeros(()),
        parameter_axes=(0, *range(2, x.dim())),
    )


OPS = tuple(
    Op(
        name,
        "inference",
        partial(batch_norm.ours, activation, False),
        partial(batch_norm.theirs, activation, False),
        truth,
        residual=residual,
        activation=activation,
        training=False,
    )
    for name, residual, activation in (
        ("inference", False, None),
        ("inference+relu", False, "relu"),
        ("inference+add+relu", True, "relu"),
    )
)
