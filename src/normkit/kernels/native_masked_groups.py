"""Masked group norm on the native kernels; instance norm has groups of one channel.

Each channel of each sample is a channel of one large sample, (1, N * C, *), whose moments the kernels give. Those of
its real values follow as in masked batch norm (`native_masked.py`), those of a group are the merged ones of its
channels, and normalizing by them is an evaluation with given statistics. With m real values a group:

    y  = w xhat + b + residual                                     an evaluation
    dx = w dy rstd - (xhat sum(w dy xhat) + sum(w dy)) rstd / m    its backward, and an evaluation that adds it
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._activation import IDENTITY, Activation
from .._operands import Gradients, Needs, Operands, Saved
from .native_masked import LARGEST_SHARE, clear, select, zeroed
from .native_means import add_means

Kernel = Callable[..., Any]


def forward(  # the two kernels, and what the norm says
    statistics: Kernel, kernel: Kernel, operands: Operands, num_groups: int, activation: Activation, eps: float,
    save: bool,
) -> tuple[Tensor, Saved | None]:  # fmt: skip
    """activation(group_norm(input) + residual), zero under the mask; stats (3, N * C): of each channel, its group's."""
    seen, counts, value = _large(operands)
    mean, var = _moments(statistics, seen.input, operands, counts, value, num_groups)
    after = activation.code, activation.param
    y, stats, bits = kernel(seen.input, seen.residual, seen.weight, seen.bias, mean, var, 0, eps, *after, save, ())
    assert operands.mask is not None
    y.resize_(operands.input.shape)  # no view, which autograd lets nobody change in place
    y = _like(y.masked_fill_(~operands.mask, 0), operands.input)
    return y, Saved(stats, bits) if save else None


def backward(  # the two kernels, and what the norm says
    kernel: Kernel, forward: Kernel, dy: Tensor, operands: Operands, saved: Saved, num_groups: int,
    activation: Activation, needs: Needs,
) -> Gradients:  # fmt: skip
    """The first derivative."""
    mask, (n, c) = operands.mask, operands.input.shape[:2]
    assert mask is not None
    seen, counts, _ = _large(_widened(operands))
    # in float64, which the sums over positions then have too: those of a group's channels may cancel
    weight = saved.stats.new_ones(n * c) if seen.weight is None else seen.weight.double()
    bias = torch.zeros_like(weight) if seen.bias is None else seen.bias.double()
    dy = zeroed(dy, mask).to(seen.input.dtype).reshape(seen.input.shape)
    dx, dweight, dbias, dresidual = kernel(
        dy, seen.input, seen.residual, saved.bits, weight, bias, saved.stats, 0, False,
        activation.code, activation.param, needs.input, True, True, needs.residual, (), 0,
    )  # fmt: skip
    if needs.input:
        mean, _, rstd = saved.stats
        values = (counts * (c // num_groups)).clamp(min=1).double()  # of a group, (N,)

        def shared(gradient: Tensor) -> Tensor:
            """What each channel loses to its group, but for rstd: (N * C,)."""
            total = (gradient * weight).view(n, num_groups, -1).sum(2, keepdim=True)
            return (-total / values.view(n, 1, 1)).expand(n, num_groups, c // num_groups).reshape(-1)

        dx = add_means(forward, dx, seen.input, shared(dweight), shared(dbias), mean, rstd**-2, 0.0)
        dx = _like(dx.to(operands.input.dtype).view(operands.input.shape), operands.input)
    skipped = operands.input.dtype if operands.residual is None else operands.residual.dtype
    found = (
        dx,
        dweight.view(n, c).sum(0).to(operands.weight.dtype) if operands.weight is not None and needs.weight else None,
        dbias.view(n, c).sum(0).to(operands.bias.dtype) if operands.bias is not None and needs.bias else None,
        None if dresidual is None else dresidual.to(skipped).view(operands.input.shape),
    )
    return clear(found, mask, IDENTITY if dresidual is None else activation.code)


def _widened(operands: Operands) -> Operands:
    """16-bit tensors as float32: w dy rstd alone may overflow or lose what the group's sums leave of it."""
    if operands.input.dtype not in (torch.float16, torch.bfloat16):
        return operands
    residual = None if operands.residual is None else operands.residual.float()
    return operands._replace(input=operands.input.float(), residual=residual)


def _like(made: Tensor, input: Tensor) -> Tensor:
    """In the input's memory format."""
    return made if input.is_contiguous() else torch.empty_like(input).copy_(made)


def _large(operands: Operands) -> tuple[Operands, Tensor, Tensor]:
    """The operands as one large sample without a mask, values that are real where others were; how many real positions
    each sample has, (N,); and what stands for the others, (N, C)."""
    input, weight, bias, residual, mask = operands[:5]
    assert mask is not None
    input = input.contiguous()
    n, c, *positions = input.shape
    real = mask.expand(n, 1, *positions).reshape(n, -1)
    counts = real.sum(1)
    first = real.to(torch.uint8).argmax(1)
    value = input.reshape(n, c, -1).gather(2, first.view(n, 1, 1).expand(n, c, 1)).squeeze(2)
    value = torch.where(counts.unsqueeze(1) > 0, value, 0)  # where nothing is real, it may be NaN
    filled = select(mask, input, value.view(n, c, *[1] * len(positions)))  # row-major, whatever the mask's strides
    shape = (1, n * c, *positions)
    weight, bias = (None if one is None else one.repeat(n) for one in (weight, bias))
    residual = None if residual is None else zeroed(residual, mask).view(shape)
    return Operands(filled.view(shape), weight, bias, residual), counts, value


def _moments(
    statistics: Kernel, filled: Tensor, operands: Operands, counts: Tensor, value: Tensor, num_groups: int
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the real values of its group, for each channel: (N * C,), float64.

    filled: (1, N * C, *), all values; counts: (N,); value: (N, C), what stands for the others.
    """
    (n, c), positions, found = value.shape, math.prod(filled.shape[2:]), statistics(filled)
    all_mean, all_var = found[0].view(n, c), found[1].view(n, c)
    value, share = value.double(), positions / counts.clamp(min=1).double().unsqueeze(1)
    distance = all_mean - value
    offset = share * distance
    mean, var = value + offset, (share * (all_var + distance * distance) - offset * offset).clamp(min=0)
    if bool((share > LARGEST_SHARE).any()):
        _of_few(statistics, operands, counts, mean, var)
    mean, var = mean.view(n, num_groups, -1), var.view(n, num_groups, -1)
    middle = mean.mean(2, keepdim=True)
    var = (var + (mean - middle).square()).mean(2, keepdim=True)
    var = torch.where(counts.view(n, 1, 1) > 0, var, 1)  # no value: 1, since 0 without eps would make NaN of zeros
    return middle.expand_as(mean).reshape(-1), var.expand_as(mean).reshape(-1)


def _of_few(statistics: Kernel, operands: Operands, counts: Tensor, mean: Tensor, var: Tensor) -> None:
    """Put the moments of samples with few real values in their places, (N, C), from these values alone."""
    input, mask = operands.input, operands.mask
    assert mask is not None
    real = mask.expand(len(input), 1, *input.shape[2:]).flatten(1)
    few = (counts > 0) & (counts * LARGEST_SHARE < real.shape[1])
    for sample in few.nonzero().flatten().tolist():
        mean[sample], var[sample], _ = statistics(input[sample].flatten(1).t()[real[sample]])
