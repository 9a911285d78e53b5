"""How far apart two sets of statistics are, in the unit in which a normalized activation feels it."""

from __future__ import annotations

from torch import Tensor


def distance(mean: Tensor, var: Tensor, reference_mean: Tensor, reference_var: Tensor, eps: float) -> Tensor:
    r"""The Wasserstein-2 distance of two normal distributions per channel, in standard deviations of the reference.

    .. math:: d = \sqrt{\frac{(\mathrm{mean} - \mathrm{mean}_r)^2 + (\sigma - \sigma_r)^2}{\sigma_r^2}}, \quad
              \sigma = \sqrt{\mathrm{var} + \epsilon}

    Where the data have the reference's moments, normalizing by it gives :math:`\hat x`; d = 0.1 means that the other
    statistics miss by a tenth of a standard deviation, shift and scale together.

    Args:
        mean, var, reference_mean, reference_var: (C,).
        eps: the layer's.

    Returns:
        (C,) float64.
    """
    std, reference_std = (var.double() + eps).sqrt(), (reference_var.double() + eps).sqrt()
    shift = mean.double() - reference_mean.double()
    return (shift.square() + (std - reference_std).square()).sqrt() / reference_std
