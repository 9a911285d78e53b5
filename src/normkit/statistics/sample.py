"""What one call shows of a layer's input: the statistics of each channel.

`Sample.within` is what the average of variances is made of. For batch norm the batch is the unit that is normalized,
so the spread inside it is all there is, m2; for instance norm each sample is a unit by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _shapes
from .._activation import NONE
from .._operands import Operands
from .._precision import wide_dtype
from ..functional.batch_norm import BatchNormSpec
from ..functional.choose import choose
from ..kernels import native
from ..moments import Moments


class Sample(NamedTuple):
    """One call, as the kernels give it; what is computed from it waits until many can be computed at once.

    values: how many of each channel (instance norm: samples). table: (3, C) float64, mean, biased variance, and a row
    that is not used. within: None for a batch; for instance norm (C,), the sum of the samples' unbiased variances.
    """

    values: int | Tensor
    table: Tensor
    within: Tensor | None = None

    @staticmethod
    def of(moments: Moments) -> Sample:
        """A batch's moments, mean (C,), as a sample."""
        moments, count = moments.to(wide_dtype(moments.mean.device)), moments.count
        values = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
        var = moments.m2 / values
        return Sample(_one(count), torch.stack([moments.mean, var, var]))


def sample(x: Tensor, mask: Tensor | None, per_instance: bool) -> Sample:
    """What one call shows. x: (N, C, *); mask: bool, (N, *) or (N, 1, *), True = a real value."""
    return _of_instances(x.detach(), mask) if per_instance else _of_batch(x.detach(), mask)


def _of_batch(x: Tensor, mask: Tensor | None = None) -> Sample:
    """The statistics of each channel of x: (N, C, *)."""
    if mask is not None:
        x = _real_values(x, mask)
    count = _shapes.values_per_channel(x.shape)
    if count == 0 or choose(BatchNormSpec(NONE, None, True, 1.0), Operands(x))[0] != "native":
        return Sample.of(Moments.of(x, _shapes.batch_dims(x.dim())))
    return Sample(count, native.batch_norm_statistics(x))


def _of_instances(x: Tensor, mask: Tensor | None = None) -> Sample:
    """The averages over the N samples of x: (N, C, *) of each one's mean and unbiased variance.

    A sample with fewer than two positions has no variance: it is not counted, like in torch, which refuses it in
    training.
    """
    kept = None if mask is None else _shapes.channel_mask(mask, x)
    each = Moments.of(x, tuple(range(2, x.dim())), kept).to(wide_dtype(x.device))  # (N, C)
    values = each.count[:, 0] if isinstance(each.count, Tensor) else torch.full(x.shape[:1], each.count)
    enough = values.to(x.device) >= 2
    means, variances = each.mean[enough], each.m2[enough] / (values.to(x.device)[enough] - 1).unsqueeze(1)
    n = len(means)
    mean = means.sum(0) / max(n, 1)
    spread = (means - mean).square().sum(0) / max(n, 1)
    return Sample(n, torch.stack([mean, spread, spread]), variances.sum(0))


def _real_values(x: Tensor, mask: Tensor) -> Tensor:
    """The values of x: (N, C, *) that the mask keeps, as (m, C)."""
    kept = _shapes.channel_mask(mask, x).squeeze(1).expand(x.shape[0], *x.shape[2:])
    return x.movedim(1, -1)[kept]


def _one(count: int | Tensor) -> int | Tensor:
    """One count for all channels: a mask does not tell them apart."""
    return count.reshape(-1)[0] if isinstance(count, Tensor) and count.dim() else count
