"""BatchRenorm1d, 2d, 3d: batch norm that learns, within limits, to do in training what it does in evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional.batch_norm import BatchNormSpec
from ..functional.batch_renorm import Limits, Recent, corrected, verify_limits
from ..moments import accumulator_dtype
from .base import Given
from .batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm

# Ioffe 2017, section 4: batch norm for 5k steps, then r_max relaxed to its limit at 40k and d_max to its own at 25k.
WARM_UP = (5_000, 40_000, 25_000)


class _BatchRenorm(_BatchNorm):
    r"""Batch renormalization: normalized by the batch, corrected within limits to the running statistics.

    .. math:: y = \mathrm{activation}\Big(\Big(\frac{x - \mathrm{mean}}{\sigma} r + d\Big) \mathrm{weight} +
              \mathrm{bias} + \mathrm{residual}\Big), \quad r = \mathrm{clip}(\sigma/\sigma_\mathrm{run}, 1/r_{max},
              r_{max}), \quad d = \mathrm{clip}((\mathrm{mean} - \mathrm{mean}_\mathrm{run})/\sigma_\mathrm{run},
              -d_{max}, d_{max})

    sigma is sqrt(var + eps). r and d are constants for the backward and use the running statistics from before the
    batch moves them. The limits follow the layer's clock, `num_batches_tracked`: (1, 0), which is batch norm, for
    the first steps, then a straight line to (r_max, d_max). Evaluation is that of batch norm.

    Args:
        num_features, eps, momentum, affine, bias, activation, small_batch: as in :class:`normkit.BatchNorm2d`. The
            paper uses momentum=0.01.
        track_running_stats: True; without running statistics there is nothing to correct to.
        r_max, d_max: the limits at the end of the warm-up.
        warm_up: (start, r_end, d_end) in batches counted: until `start` it is batch norm, r_max is reached at `r_end`
            and d_max at `d_end`; the paper's (5000, 40000, 25000). (0, 0, 0): the limits hold from the first batch.

    Call: ``bn(x, residual=None, mask=None, activation=None, modulate=None)``, as :class:`normkit.BatchNorm2d`. An
    activation checkpoint's recomputation uses r and d of its original forward, up to 64 forwards back.

    Raises:
        ValueError: limits or warm_up out of range, track_running_stats=False; the rank is wrong; one value per channel.

    Reference: Ioffe (2017), Batch Renormalization. https://arxiv.org/abs/1702.03275
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
        r_max: float = 3.0,
        d_max: float = 5.0,
        warm_up: tuple[int, int, int] = WARM_UP,
    ) -> None:
        verify_limits(r_max, d_max)
        start, r_end, d_end = warm_up
        if not 0 <= start <= min(r_end, d_end):
            raise ValueError(f"warm_up must be (start, r_end, d_end) with 0 <= start <= both ends, got {warm_up}")
        if not track_running_stats:
            raise ValueError(
                "BatchRenorm corrects to its running statistics and cannot do without: leave track_running_stats=True, "
                "or use BatchNorm"
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias, activation=activation,
            small_batch=small_batch,
        )  # fmt: skip
        self.r_max, self.d_max, self.warm_up = r_max, d_max, (start, r_end, d_end)
        self._recent = Recent()

    def limits(self) -> Limits:
        """The limits of the next batch, by `num_batches_tracked`; 0-dim tensors, so that no device is read."""
        clock = self.num_batches_tracked
        if clock is None:
            return Limits(self.r_max, self.d_max)
        start, r_end, d_end = self.warm_up
        return Limits(1 + (self.r_max - 1) * _ramp(clock, start, r_end), self.d_max * _ramp(clock, start, d_end))

    def _spec(self, input: Tensor, activation: Given) -> BatchNormSpec:
        spec = super()._spec(input, activation)
        return corrected(spec, self.limits(), self._recent) if self.training else spec

    def extra_repr(self) -> str:
        """torch's arguments, the extras that are not at their defaults, and the limits."""
        shown = f"{super().extra_repr()}, r_max={self.r_max}, d_max={self.d_max}"
        return shown if self.warm_up == WARM_UP else f"{shown}, warm_up={self.warm_up}"

    def _check_input_dim(self, input: Any) -> None:
        raise NotImplementedError


def _ramp(clock: Tensor, start: int, end: int) -> Tensor:
    """0 until `start`, 1 from `end` on, a straight line between."""
    if end == start:
        return (clock >= start).to(torch.get_default_dtype())
    return ((clock - start).to(accumulator_dtype(clock)) / (end - start)).clamp(0, 1)


class BatchRenorm1d(_BatchRenorm, BatchNorm1d):
    __doc__ = f"""Batch renormalization over (N, C) or (N, C, L).\n{_BatchRenorm.__doc__}"""

    _check_input_dim = BatchNorm1d._check_input_dim


class BatchRenorm2d(_BatchRenorm, BatchNorm2d):
    __doc__ = f"""Batch renormalization over (N, C, H, W).\n{_BatchRenorm.__doc__}"""

    _check_input_dim = BatchNorm2d._check_input_dim


class BatchRenorm3d(_BatchRenorm, BatchNorm3d):
    __doc__ = f"""Batch renormalization over (N, C, D, H, W).\n{_BatchRenorm.__doc__}"""

    _check_input_dim = BatchNorm3d._check_input_dim
