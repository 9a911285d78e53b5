"""SyncBatchNorm: batch norm over the batches of all processes, on any torch.distributed backend or on one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import is_distributed
from ..functional.batch_norm import BatchNormSpec
from ..functional.sync_batch_norm import synchronised
from .base import Given
from .batch_norm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    r"""Batch normalization under the statistics of all processes' batches together.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \epsilon}} \cdot
              \mathrm{weight} + \mathrm{bias} + \mathrm{residual}\Big)

    In training each process sends the count, mean and squared deviations of its batch in one collective; they merge
    exactly, whatever the counts: uneven batches, masks and an empty batch weigh as many values as they have. All
    processes' running statistics move alike. Evaluation, and training on one process (with or without an initialised
    process group, on any device), is that of :class:`normkit.BatchNorm2d`.

    Args:
        num_features, eps, momentum, affine, track_running_stats, bias, activation, small_batch: as in
            :class:`normkit.BatchNorm2d`. small_batch acts on one process alone: a rank with one value takes part in
            the statistics of all.
        process_group: who shares statistics; None: all processes.

    Call: ``bn(x, residual=None, mask=None, activation=None, modulate=None)``. x: (N, C) or (N, C, *).

    Differences from torch.nn: works on the CPU and with gloo; an empty batch on one rank is fine; derivatives of every
    order. It is an instance of torch's _BatchNorm but not of torch's SyncBatchNorm, because
    DistributedDataParallel refuses that class on the CPU.

    Raises:
        ValueError: fewer than two axes, no channels, or one value per channel in training; torch's texts.
        RuntimeError: at a layer's first call, and at every call with NORMKIT_CHECK_RANKS=1: the ranks are at different
            calls, channels or dtypes; on every rank, with the ranks named.

    Reference: Ioffe & Szegedy (2015), Batch Normalization. https://arxiv.org/abs/1502.03167
    """

    process_group: Any | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | nn.Module | None = None,
        small_batch: str = "error",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, activation=activation,
            small_batch=small_batch,
        )  # fmt: skip
        self.process_group = process_group

    def _spec(self, input: Tensor, activation: Given) -> BatchNormSpec:
        spec = super()._spec(input, activation)
        if not (self.training and is_distributed(self.process_group)):
            return spec
        return synchronised(spec, self.process_group, self)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.size(1) == 0:
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")
