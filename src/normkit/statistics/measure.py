"""What one call shows of a layer's input: the moments of each channel, and the spread inside what was normalized.

`Sample.within` and `Sample.freedom` are what the average of variances is made of: sum of (m_B - 1) var_B over sum of
(m_B - 1). For batch norm the unit that is normalized is the batch, for instance norm each sample by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _shapes
from .._activation import NONE
from ..functional._choose import choose
from ..kernels import native
from ..moments import Moments


@dataclass(frozen=True)
class Sample:
    """One call. moments: of all values, mean (C,); within: (C,), `freedom` times the unbiased variance inside."""

    moments: Moments
    within: Tensor
    freedom: int | Tensor

    @staticmethod
    def of_batch(moments: Moments) -> Sample:
        """The batch is what was normalized: the spread inside it is all the spread there is."""
        count = moments.count
        freedom = (count - 1).clamp(min=0) if isinstance(count, Tensor) else max(count - 1, 0)
        return Sample(moments, moments.m2, freedom)


def measure(x: Tensor, mask: Tensor | None, per_instance: bool) -> Sample:
    """What one call shows. x: (N, C, *); mask: bool, (N, *) or (N, 1, *), True = a real value."""
    return measure_instances(x, mask) if per_instance else measure_batch(x, mask)


def measure_batch(x: Tensor, mask: Tensor | None = None) -> Sample:
    """The moments of each channel of x: (N, C, *). mask: bool, (N, *) or (N, 1, *), True = a real value."""
    x = x.detach()
    if mask is not None:
        x = real_values(x, mask)
    return Sample.of_batch(_channel_moments(x))


def measure_instances(x: Tensor, mask: Tensor | None = None) -> Sample:
    """The averages over the N samples of x: (N, C, *) of each one's mean and unbiased variance; mask as above.

    The unit counted is the sample. A sample with fewer than two positions has no variance: it is not counted, like in
    torch, which refuses it in training.
    """
    x = x.detach()
    n, c = x.shape[:2]
    if mask is None:
        flat = _channel_moments(x.contiguous().view(1, n * c, -1)) if x.numel() else Moments.of(x.view(1, n * c, 0), 2)
        assert isinstance(flat.count, int)
        means, m2 = flat.mean.view(n, c), flat.m2.view(n, c)
        counts = torch.full((n,), flat.count, device=x.device)
    else:
        each = Moments.of(x, tuple(range(2, x.dim())), _shapes.channel_mask(mask, x))
        means, m2, counts = each.mean, each.m2, torch.as_tensor(each.count)[:, 0]
    enough = counts >= 2
    means, variances = means[enough], m2[enough] / (counts[enough] - 1).unsqueeze(1)
    mean = means.sum(0) / max(len(means), 1)
    return Sample(Moments(len(means), mean, (means - mean).square().sum(0)), variances.sum(0), len(means))


def real_values(x: Tensor, mask: Tensor) -> Tensor:
    """The values of x: (N, C, *) that the mask keeps, as (m, C)."""
    kept = _shapes.channel_mask(mask, x).squeeze(1).expand(x.shape[0], *x.shape[2:])
    return x.movedim(1, -1)[kept]


def _channel_moments(x: Tensor) -> Moments:
    path, _ = choose("batch_norm", x, NONE, None)
    count = _shapes.values_per_channel(x.shape)
    if path != "native" or count == 0:
        return Moments.of(x, _shapes.batch_dims(x.dim()))
    _, stats, _ = native.batch_norm_forward(x, None, None, None, NONE.code, 0.0, 1.0, save_for_backward=False)
    return Moments(count, stats[0], stats[1] * count)
