"""Group and instance norm, training: statistics of a few channels, or one, within a sample."""

from __future__ import annotations

from torch import Tensor, nn

import normkit as nk
from normkit import reference

from .batch_norm import EPS
from .op import Op, Truth, Unfused, prepared, ranked
from .problem import Case, Problem


def block(case: Case) -> int:
    """Channels a group: 32 groups as in Wu & He 2018 where that leaves two channels each, else 8."""
    channels = case.shape[1]
    groups = 32 if channels % 32 == 0 and channels >= 64 else 8
    return channels // groups


def group_truth(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Truth:
    """x: (N, C, *) float64, whole groups."""
    groups = x.shape[1] // block(problem.case)
    y, _, variance = reference.group_norm(x, groups, weight, bias, EPS)

    def average(t: Tensor) -> Tensor:
        return _spread(t.reshape(t.shape[0], groups, -1).mean(2), x)

    return Truth(
        y=y,
        xhat=reference.group_norm(x, groups, None, None, EPS)[0],
        rstd=_spread((variance + EPS).rsqrt(), x),
        gradients=lambda dz: reference.group_norm_backward_collapsed(dz, x, groups, weight, EPS),
        mean=average,
        parameter_axes=(0, *range(2, x.dim())),
    )


def instance_truth(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Truth:
    """x: (N, C, *) float64."""
    axes = tuple(range(2, x.dim()))
    y, _, variance = reference.instance_norm(x, weight, bias, EPS)
    return Truth(
        y=y,
        xhat=reference.instance_norm(x, None, None, EPS)[0],
        rstd=_spread((variance + EPS).rsqrt(), x),
        gradients=lambda dz: reference.instance_norm_backward(dz, x, weight, EPS),
        mean=lambda t: t.mean(axes, keepdim=True),
        parameter_axes=(0, *axes),
    )


def _spread(value: Tensor, x: Tensor) -> Tensor:
    """(N, G) as (N, C, 1, ...)."""
    spread = value.repeat_interleave(x.shape[1] // value.shape[1], 1)
    return spread.view(*spread.shape, *[1] * (x.dim() - 2))


def _group(problem: Problem, library: object) -> nn.Module:
    channels = problem.case.shape[1]
    return prepared(library.GroupNorm(channels // block(problem.case), channels), problem, True)  # type: ignore[attr-defined]  # nk or torch.nn


def _instance(problem: Problem, library: object) -> nn.Module:
    layer = getattr(library, ranked("InstanceNorm", problem.case))
    return prepared(layer(problem.case.shape[1], affine=True), problem, True)


OPS = (
    Op(
        "group_norm",
        "group_norm",
        lambda problem: _group(problem, nk),
        lambda problem: Unfused(_group(problem, nn), None),
        group_truth,
        block=block,
    ),
    Op(
        "instance_norm",
        "group_norm",
        lambda problem: _instance(problem, nk),
        lambda problem: Unfused(_instance(problem, nn), None),
        instance_truth,
    ),
)
