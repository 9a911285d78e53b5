"""Two ways to a gradient that know nothing of a hand-derived backward: autograd and central differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def autograd_of(function: Function, dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of sum(function(*inputs) * dy) with respect to each input, by torch's autograd."""
    leaves = [v.detach().clone().requires_grad_() for v in inputs]
    return torch.autograd.grad(function(*leaves), leaves, dy)


def central_difference(function: Function, dy: Tensor, *inputs: Tensor, h: float = 1e-5) -> tuple[Tensor, ...]:
    """The same gradients by (f(v + h) - f(v - h)) / 2h, one element at a time."""
    gradients = []
    for position, value in enumerate(inputs):
        gradient = torch.zeros_like(value)
        for i in range(value.numel()):
            ends = []
            for step in (h, -h):
                moved = value.clone()
                moved.view(-1)[i] += step
                ends.append((function(*inputs[:position], moved, *inputs[position + 1 :]) * dy).sum())
            gradient.view(-1)[i] = (ends[0] - ends[1]) / (2 * h)
        gradients.append(gradient)
    return tuple(gradients)
