"""Batch renormalization (Ioffe 2017): batch norm corrected, within limits, to what inference will do.

x: (N, C, *); all statistics: (C,). With sigma_B = sqrt(var_B + eps) of the batch and sigma = sqrt(running_var + eps),

    r = stop_gradient(clip(sigma_B/sigma, 1/r_max, r_max))
    d = stop_gradient(clip((mean_B - mean)/sigma, -d_max, d_max))
    xhat = (x - mean_B)/sigma_B * r + d        y = weight*xhat + bias

Without limits this is (x - mean)/sigma, inference; at r_max = 1, d_max = 0 it is batch norm. The running statistics are
those from before this batch moves them. The paper averages sigma itself; here, as in every torch layer, the variance is
averaged and the root taken after, so that the state stays that of batch norm. Inference is `batch_norm_inference`.
"""

from __future__ import annotations

from torch import Tensor

from normkit.reference._moments import count, moments, select, spatial_mask, total
from normkit.reference.batch_norm import channel_axes, per_channel

# Ioffe 2017, section 4: batch norm for the first 5k steps, then relaxed to r_max = 3 at 40k and d_max = 5 at 25k.
WARM_UP_START = 5_000
R_MAX_END = 40_000
D_MAX_END = 25_000


def limits(step: int, r_max: float = 3.0, d_max: float = 5.0) -> tuple[float, float]:
    """(r_max, d_max) at a step: (1, 0) until 5k, then linear to r_max at 40k and to d_max at 25k, constant after."""
    r_part = min(max((step - WARM_UP_START) / (R_MAX_END - WARM_UP_START), 0.0), 1.0)
    d_part = min(max((step - WARM_UP_START) / (D_MAX_END - WARM_UP_START), 0.0), 1.0)
    return 1 + (r_max - 1) * r_part, d_max * d_part


def correction(
    mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, r_max: float, d_max: float
) -> tuple[Tensor, Tensor]:
    """(r, d): (C,), constants for the backward."""
    sigma = (running_var + eps).sqrt()
    r = ((var + eps).sqrt() / sigma).clamp(1 / r_max, r_max)
    d = ((mean - running_mean) / sigma).clamp(-d_max, d_max)
    return r.detach(), d.detach()


def batch_renorm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    r_max: float,
    d_max: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training forward: (y: (N, C, *), mean and biased var of the batch: (C,))."""
    keep = spatial_mask(mask, x)
    mean, var, centred = moments(x, channel_axes(x), keep)
    r, d = correction(mean.flatten(), var.flatten(), running_mean, running_var, eps, r_max, d_max)
    xhat = centred / (var + eps).sqrt() * per_channel(r, x, 1) + per_channel(d, x, 0)
    y = per_channel(weight, x, 1) * xhat + per_channel(bias, x, 0)
    return select(y, keep), mean.flatten(), var.flatten()


def batch_renorm_backward(
    dy: Tensor,
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    eps: float,
    r_max: float,
    d_max: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx: (N, C, *), dweight: (C,), dbias: (C,)) in the paper's steps; no gradient enters r and d."""
    axes, keep = channel_axes(x), spatial_mask(mask, x)
    dy, m = select(dy, keep), count(x, axes, keep)
    mean, var, centred = moments(x, axes, keep)
    r_c, d_c = correction(mean.flatten(), var.flatten(), running_mean, running_var, eps, r_max, d_max)
    r, d, sigma = per_channel(r_c, x, 1), per_channel(d_c, x, 0), (var + eps).sqrt()
    xhat = select(centred / sigma * r + d, keep)

    dbias = total(dy, axes)
    dweight = total(dy * xhat, axes)
    dxhat = dy * per_channel(weight, x, 1)
    dsigma = total(dxhat * centred, axes) * -r / sigma**2
    dmean = total(dxhat, axes) * -r / sigma
    dx = dxhat * r / sigma + dsigma * centred / (m * sigma) + dmean / m
    return select(dx, keep), dweight.flatten(), dbias.flatten()
