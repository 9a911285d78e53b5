"""The lazy layers: num_features comes from the first input, and the layer then becomes the plain one of its family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._torch import LazyNormBase, takes_bias
from .base import TrackedNorm, verify_small_batch
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm
from .instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, _InstanceNorm


class _Lazy(TrackedNorm):
    """Mixin: what the lazy layers do at their first input. Statistics stay float32 there too."""

    def _make_lazy(self, *arguments: Any, bias: bool) -> None:
        if takes_bias(LazyNormBase.__init__):
            LazyNormBase.__init__(self, *arguments, bias=bias)  # type: ignore[arg-type]  # a mixin: self is lazy
        elif bias:
            LazyNormBase.__init__(self, *arguments)  # type: ignore[arg-type]
        else:
            raise TypeError(
                f"{type(self).__name__}(bias=False): torch {torch.__version__} has no lazy norm without a bias; give "
                "num_features to the layer that is not lazy"
            )

    def initialize_parameters(self, input: Tensor) -> None:
        """Give parameters and buffers their shapes from input.size(1); afterwards the layer is `cls_to_become`."""
        super().initialize_parameters(input)  # type: ignore[misc]  # torch's lazy class comes next in the MRO
        self.num_features = input.shape[1]  # torch leaves 0 there after load_state_dict, and instance norm then raises
        self._widen_statistics()


class _LazyBatchNorm(_Lazy, _BatchNorm):
    """A batch norm whose number of channels is that of its first input. The arguments are BatchNorm's without it."""

    def __init__(
        self,
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
    ) -> None:
        self._make_lazy(eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self._set_activation(activation)
        self.small_batch = verify_small_batch(small_batch)


class _LazyInstanceNorm(_Lazy, _InstanceNorm):
    """An instance norm whose number of channels is that of its first input (axis 1: the input needs a batch axis)."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | nn.Module | None = None,
    ) -> None:
        self._make_lazy(eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self._set_activation(activation)


class LazyBatchNorm1d(_LazyBatchNorm, nn.LazyBatchNorm1d):
    """BatchNorm1d for a first input (N, C) or (N, C, L) that gives num_features; then it is a BatchNorm1d."""

    cls_to_become = BatchNorm1d
    _check_input_dim = nn.BatchNorm1d._check_input_dim


class LazyBatchNorm2d(_LazyBatchNorm, nn.LazyBatchNorm2d):
    """BatchNorm2d for a first input (N, C, H, W) that gives num_features; then it is a BatchNorm2d."""

    cls_to_become = BatchNorm2d
    _check_input_dim = nn.BatchNorm2d._check_input_dim


class LazyBatchNorm3d(_LazyBatchNorm, nn.LazyBatchNorm3d):
    """BatchNorm3d for a first input (N, C, D, H, W) that gives num_features; then it is a BatchNorm3d."""

    cls_to_become = BatchNorm3d
    _check_input_dim = nn.BatchNorm3d._check_input_dim


class LazyInstanceNorm1d(_LazyInstanceNorm, nn.LazyInstanceNorm1d):
    """InstanceNorm1d for a first input (N, C, L) that gives num_features; then it is an InstanceNorm1d."""

    cls_to_become = InstanceNorm1d
    _check_input_dim = nn.InstanceNorm1d._check_input_dim
    _get_no_batch_dim = InstanceNorm1d._get_no_batch_dim


class LazyInstanceNorm2d(_LazyInstanceNorm, nn.LazyInstanceNorm2d):
    """InstanceNorm2d for a first input (N, C, H, W) that gives num_features; then it is an InstanceNorm2d."""

    cls_to_become = InstanceNorm2d
    _check_input_dim = nn.InstanceNorm2d._check_input_dim
    _get_no_batch_dim = InstanceNorm2d._get_no_batch_dim


class LazyInstanceNorm3d(_LazyInstanceNorm, nn.LazyInstanceNorm3d):
    """InstanceNorm3d for a first input (N, C, D, H, W) that gives num_features; then it is an InstanceNorm3d."""

    cls_to_become = InstanceNorm3d
    _check_input_dim = nn.InstanceNorm3d._check_input_dim
    _get_no_batch_dim = InstanceNorm3d._get_no_batch_dim
