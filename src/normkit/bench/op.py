"""What a family tells the benchmark about an operation: normkit's layer, torch's, and the truth.

Rule: a family's file lists its operations as data; how they are timed, checked and printed is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .problem import Case, Problem


@dataclass(frozen=True)
class Truth:
    """float64 results of a case, or of some of its channels; what the bounds need: xhat, rstd and the group means.

    y: before residual and activation. `mean`: the average over what one statistic covers, broadcast back.
    """

    y: Tensor
    xhat: Tensor
    rstd: Tensor
    gradients: Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]  # dz -> dx, dweight, dbias
    mean: Callable[[Tensor], Tensor]
    parameter_axes: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One operation.

    ours, theirs: the layer with its parameters set; ours adds the residual and applies the activation itself.
    truth: (problem, x, weight, bias, mean, var), in float64.
    block: how many neighbouring channels share a statistic, 0 where the check cannot take some channels alone.
    added_first: the residual is added in front of the norm, and the sum is a result of ours; else behind it.
    """

    name: str
    family: str
    ours: Callable[[Problem], nn.Module]
    theirs: Callable[[Problem], nn.Module]
    truth: Callable[[Problem, Tensor, Tensor, Tensor, Tensor, Tensor], Truth]
    residual: bool = False
    activation: str | None = None
    training: bool = True
    block: Callable[[Case], int] = lambda case: 1
    added_first: bool = False


class Unfused(nn.Module):
    """torch eager at its best: the norm, then residual and ReLU in place, as torchvision writes them."""

    def __init__(self, norm: nn.Module, activation: str | None) -> None:
        super().__init__()
        self.norm, self.rectifies = norm, activation == "relu"

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual: one shape."""
        y: Tensor = self.norm(x)
        if residual is not None:
            y += residual
        return F.relu(y, inplace=True) if self.rectifies else y


def prepared(layer: nn.Module, problem: Problem, training: bool) -> nn.Module:
    """The layer with the problem's parameters and statistics, in its mode."""
    for name in ("weight", "bias"):
        parameter = getattr(layer, name, None)
        if parameter is not None:
            parameter.data.copy_(getattr(problem, name))
    if getattr(layer, "running_mean", None) is not None:
        layer.running_mean.copy_(problem.mean)  # type: ignore[operator]  # a buffer, which nn.Module types as a Module
        layer.running_var.copy_(problem.var)  # type: ignore[operator]  # as above
    return layer.train(training)


def ranked(stem: str, case: Case) -> str:
    """The class for the case's rank: BatchNorm1d for (N, C) and (N, C, L), BatchNorm2d for (N, C, H, W)."""
    return f"{stem}{max(1, len(case.shape) - 2)}d"
