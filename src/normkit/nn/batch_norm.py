"""BatchNorm1d, BatchNorm2d, BatchNorm3d: torch.nn's layers with residual, activation, mask and exact statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from .._torch import BatchNormBase
from ..functional.batch_norm import BatchNormSpec
from ..functional.road import run
from ._bias import BiasOption
from .base import Given, TrackedNorm, verify_small_batch


class _BatchNorm(BiasOption, TrackedNorm, BatchNormBase):
    r"""Batch normalization: each channel is centred and scaled over the batch, then scaled and shifted as learned.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \epsilon}} \cdot
              \mathrm{weight} + \mathrm{bias} + \mathrm{residual}\Big)

    In training, mean and the biased variance are the batch's, per channel over N and all positions, and the running
    statistics move: ``running = (1 - momentum) * running + momentum * new`` with the unbiased variance. In evaluation
    they are the running ones. ``momentum=None`` keeps the cumulative average over all batches.

    Args:
        num_features: C, the size of axis 1.
        eps: added to the variance, inside the square root.
        momentum: the weight of the new value in the running statistics, or None.
        affine: whether to learn weight and bias, both (C,).
        track_running_stats: whether to keep running statistics; without them evaluation uses the batch's.
        bias: False leaves the shift out.
        activation: None, a name in torch.nn.functional ("relu"), or a module; applied last.
        small_batch: what one value per channel gets in training: "error" as in torch, or "running" (it is normalized
            with the running statistics, which do not move).

    Call: ``bn(x, residual=None, mask=None, activation=None, modulate=None)``. residual: x's shape, added before the
    activation. mask: bool, (N, *) or (N, 1, *), True = a real value: statistics are those of the real values, outputs
    elsewhere are zero. activation: for this call, in place of the layer's own. modulate: (scale, shift), each (N, C),
    or of x's rank that broadcasts to it, or None: scale * norm(x) + shift, before the residual.

    Differences from torch.nn: running statistics stay float32 in half-precision modules; an empty batch is not
    counted; a batch with NaN or Inf moves no statistic (RuntimeWarning); an activation checkpoint updates once;
    torch.jit.script is refused.

    Raises:
        ValueError: the rank is wrong, or a channel has one value in training; torch's texts.

    Reference: Ioffe & Szegedy (2015), Batch Normalization. https://arxiv.org/abs/1502.03167
    """

    small_batch: str = "error"

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
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self._set_activation(activation)
        self.small_batch = verify_small_batch(small_batch)
        self._widen_statistics()

    def forward(
        self, input: Tensor, residual: Maybe = None, mask: Maybe = None, activation: Given = None,
        modulate: Modulate = None,
    ) -> Tensor:  # fmt: skip
        """input: (N, C, *) -> the same shape, dtype and memory format."""
        if type(input) is not Tensor and is_proxy(input):
            given = {"residual": residual, "mask": mask, "activation": activation, "modulate": modulate}
            return module_node(self, input, **given)
        self._check_input_dim(input)
        weight, bias = self._affine()
        return run(self._spec(input, activation), input, weight, bias, residual, mask, modulate)

    def _spec(self, input: Tensor, activation: Given) -> BatchNormSpec:
        """This call but for its tensors; the layers that build on batch norm say theirs here."""
        running = self._running()
        batch = self.training or running is None
        eps = self.__dict__["eps"]  # past `rebuilt`
        return BatchNormSpec(self._resolved_activation(activation), running, batch, eps, self.small_batch)

    def extra_repr(self) -> str:
        """torch's arguments, then the extras that are not at their defaults."""
        shown = super().extra_repr()
        return shown if self.small_batch == "error" else f"{shown}, small_batch={self.small_batch!r}"

    def _check_input_dim(self, input: Any) -> None:
        raise NotImplementedError


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    __doc__ = f"""Batch normalization over (N, C) or (N, C, L).\n{_BatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    __doc__ = f"""Batch normalization over (N, C, H, W).\n{_BatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    __doc__ = f"""Batch normalization over (N, C, D, H, W).\n{_BatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm3d._check_input_dim
