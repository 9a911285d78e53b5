"""GhostBatchNorm1d, 2d, 3d: batch norm of each slice of a batch, as small batches would have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional.batch_norm import BatchNormSpec
from ..functional.ghost_batch_norm import sliced
from .base import Given
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm


class _GhostBatchNorm(_BatchNorm):
    r"""Ghost batch normalization: each slice of `virtual_batch_size` samples is normalized by its own statistics.

    .. math:: y_n = \mathrm{activation}\Big(\frac{x_n - \mathrm{mean}_{s(n)}}{\sqrt{\mathrm{var}_{s(n)} + \epsilon}}
              \cdot \mathrm{weight} + \mathrm{bias} + \mathrm{residual}_n\Big), \quad s(n) \text{ the slice of } n

    A batch of N samples is cut in order into near-equal slices (the longer ones first), none longer than
    `virtual_batch_size` and none of a single sample. In training the running statistics move once, by the moments of
    the whole batch (the slices merged), so evaluation, which uses them, does not depend on the samples' order.

    Args:
        num_features, eps, momentum, affine, track_running_stats, bias, activation, small_batch: as in
            :class:`normkit.BatchNorm2d`.
        virtual_batch_size: the longest slice, in samples.

    Call: ``bn(x, residual=None, mask=None, activation=None, modulate=None)``, as :class:`normkit.BatchNorm2d`. Without
    running statistics evaluation slices too.

    Raises:
        ValueError: virtual_batch_size below 1; the rank is wrong; a channel has one value in training.

    Reference: Hoffer, Hubara & Soudry (2017), Train longer, generalize better. https://arxiv.org/abs/1705.08741
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | nn.Module | None = None,
        small_batch: str = "error",
        virtual_batch_size: int = 32,
    ) -> None:
        if virtual_batch_size < 1:
            raise ValueError(f"virtual_batch_size must be 1 or more, got {virtual_batch_size}")
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, activation=activation,
            small_batch=small_batch,
        )  # fmt: skip
        self.virtual_batch_size = virtual_batch_size

    def _spec(self, input: Tensor, activation: Given) -> BatchNormSpec:
        return sliced(super()._spec(input, activation), input, self.virtual_batch_size)

    def extra_repr(self) -> str:
        """torch's arguments, the extras that are not at their defaults, and the virtual batch size."""
        return f"{super().extra_repr()}, virtual_batch_size={self.virtual_batch_size}"

    def _check_input_dim(self, input: Any) -> None:
        raise NotImplementedError


class GhostBatchNorm1d(_GhostBatchNorm, BatchNorm1d):
    __doc__ = f"""Ghost batch normalization over (N, C) or (N, C, L).\n{_GhostBatchNorm.__doc__}"""

    _check_input_dim = BatchNorm1d._check_input_dim


class GhostBatchNorm2d(_GhostBatchNorm, BatchNorm2d):
    __doc__ = f"""Ghost batch normalization over (N, C, H, W).\n{_GhostBatchNorm.__doc__}"""

    _check_input_dim = BatchNorm2d._check_input_dim


class GhostBatchNorm3d(_GhostBatchNorm, BatchNorm3d):
    __doc__ = f"""Ghost batch normalization over (N, C, D, H, W).\n{_GhostBatchNorm.__doc__}"""

    _check_input_dim = BatchNorm3d._check_input_dim
