"""Ghost batch normalization (Hoffer, Hubara & Soudry 2017): batch norm of each slice of a batch by itself.

x: (N, C, *). The N samples are cut as numpy.array_split cuts them: near-equal slices in order, the longer ones first,
none longer than `virtual_batch_size` and none of a single sample. Where both cannot be, the second rule wins: three
samples at a virtual batch of 2 are one slice. A batch of one sample is one slice.

What moves the running statistics is the mean and variance of the whole batch (its slices merged), once a step. Hoffer
et al. update them slice after slice, which weighs the last slice most; that depends on the order of the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from normkit.reference._moments import moments, spatial_mask
from normkit.reference.batch_norm import batch_norm, batch_norm_backward, channel_axes


def slice_sizes(num_samples: int, virtual_batch_size: int) -> list[int]:
    """How many samples each slice gets."""
    if virtual_batch_size < 1:
        raise ValueError(f"expected virtual_batch_size >= 1 (got {virtual_batch_size})")
    slices = max(1, min(math.ceil(num_samples / virtual_batch_size), num_samples // 2))
    size, longer = divmod(num_samples, slices)
    return [size + 1] * longer + [size] * (slices - longer)


def _each_slice(
    function: Callable[..., tuple[Tensor, Tensor, Tensor]],
    virtual_batch_size: int,
    mask: Tensor | None,
    *batched: Tensor,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    sizes = slice_sizes(len(batched[0]), virtual_batch_size)
    masks = [None] * len(sizes) if mask is None else list(mask.split(sizes))
    parts = [value.split(sizes) for value in batched]
    return [function(*(part[i] for part in parts), masks[i]) for i in range(len(sizes))]


def ghost_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    virtual_batch_size: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of each slice: (y: (N, C, *), mean and biased var of the whole batch: (C,))."""
    results = _each_slice(lambda x, mask: batch_norm(x, weight, bias, eps, mask), virtual_batch_size, mask, x)
    mean, var, _ = moments(x, channel_axes(x), spatial_mask(mask, x))
    return torch.cat([y for y, _, _ in results]), mean.flatten(), var.flatten()


def ghost_batch_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, eps: float, virtual_batch_size: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: (N, C, *), dweight: (C,), dbias: (C,)): dx slice by slice, the parameters' gradients summed over slices."""
    results = _each_slice(
        lambda dy, x, mask: batch_norm_backward(dy, x, weight, eps, mask), virtual_batch_size, mask, dy, x
    )
    dx, dweight, dbias = zip(*results, strict=True)
    return torch.cat(dx), torch.stack(dweight).sum(0), torch.stack(dbias).sum(0)
