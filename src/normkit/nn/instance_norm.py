"""InstanceNorm1d, InstanceNorm2d, InstanceNorm3d: torch.nn's layers with residual, activation and mask."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from .._torch import InstanceNormBase
from ..functional.instance_norm import InstanceNormSpec
from ..functional.modulate import pair
from ..functional.road import run
from ._bias import BiasOption
from .base import Given, TrackedNorm


class _InstanceNorm(BiasOption, TrackedNorm, InstanceNormBase):
    r"""Instance normalization: each channel of each sample gets zero mean and unit variance over its positions.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{mean}_{n,c}}{\sqrt{\mathrm{var}_{n,c} + \epsilon}} \cdot
              \mathrm{weight}_c + \mathrm{bias}_c + \mathrm{residual}\Big)

    Training and evaluation are the same unless running statistics are tracked: then evaluation uses them, and training
    moves them towards the averages over the samples of the means and of the unbiased variances:
    ``running = (1 - momentum) * running + momentum * new``; ``momentum=None`` keeps the cumulative average.

    Args:
        num_features: C, the size of the channel axis.
        eps: added to the (biased) variance, inside the square root.
        momentum: the weight of the new value in the running statistics, or None.
        affine: whether to learn weight and bias, both (C,); not by default.
        track_running_stats: whether to keep running statistics; not by default.
        bias: False leaves the shift out.
        activation: None, a name in torch.nn.functional ("relu"), or a module; applied last.

    Call: ``norm(x, residual=None, mask=None, activation=None, modulate=None)``. x: with or without the batch axis.
    residual: x's shape, added before the activation. mask: bool, x's shape without its channel axis (or with 1 there),
    True = a real value: a sample's statistics are those of its real values, outputs elsewhere are zero. activation: for
    this call, in place of the layer's own. modulate: (scale, shift), each (N, C), or of x's rank that broadcasts to it,
    or None: scale * norm(x) + shift, before the residual.

    Differences from torch.nn: channels_last is kept; ``momentum=None`` is the cumulative average (torch never moves);
    num_batches_tracked counts (torch never does); the rules of running statistics are those of BatchNorm here.

    Raises:
        ValueError: the rank is wrong, or there is one single position; torch's texts.

    Reference: Ulyanov, Vedaldi & Lempitsky (2016), Instance Normalization. https://arxiv.org/abs/1607.08022
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | nn.Module | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self._set_activation(activation)
        self._widen_statistics()

    def forward(
        self, input: Tensor, residual: Maybe = None, mask: Maybe = None, activation: Given = None,
        modulate: Modulate = None,
    ) -> Tensor:  # fmt: skip
        """input: (N, C, *) or (C, *) -> the same shape, dtype and memory format."""
        if is_proxy(input):
            given = {"residual": residual, "mask": mask, "activation": activation, "modulate": modulate}
            return module_node(self, input, **given)
        self._check_input_dim(input)
        unbatched = input.dim() == self._get_no_batch_dim()
        self._check_channels(input, 0 if unbatched else 1)
        if unbatched:
            residual, mask = (None if t is None else t.unsqueeze(0) for t in (residual, mask))
            if modulate is not None:
                scale, shift = pair(modulate)
                modulate = None if scale is None else scale.unsqueeze(0), None if shift is None else shift.unsqueeze(0)
            return self._normalize(input.unsqueeze(0), residual, mask, activation, modulate).squeeze(0)
        return self._normalize(input, residual, mask, activation, modulate)

    def _normalize(self, input: Tensor, residual: Maybe, mask: Maybe, activation: Given, modulate: Modulate) -> Tensor:
        own = self.training or not self.track_running_stats or self.running_mean is None
        running = self._running() if self.training or not own else None
        spec = InstanceNormSpec(self._resolved_activation(activation), running, own, self.__dict__["eps"])
        return run(spec, input, *self._affine(), residual, mask, modulate)

    def _check_channels(self, input: Tensor, axis: int) -> None:
        found = input.size(axis)
        if found == self.__dict__["num_features"]:
            return
        if self.affine:
            raise ValueError(
                f"expected input's size at dim={axis} to match num_features ({self.num_features}), but got: {found}."
            )
        warnings.warn(
            f"input's size at dim={axis} does not match num_features. You can silence this warning by not passing in "
            "num_features, which is not used because affine=False",
            stacklevel=3,
        )


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    __doc__ = f"""Instance normalization over (N, C, L) or (C, L).\n{_InstanceNorm.__doc__}"""

    _check_input_dim = nn.InstanceNorm1d._check_input_dim

    def _get_no_batch_dim(self) -> int:  # torch's own is opaque to an older Dynamo
        return 2


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    __doc__ = f"""Instance normalization over (N, C, H, W) or (C, H, W).\n{_InstanceNorm.__doc__}"""

    _check_input_dim = nn.InstanceNorm2d._check_input_dim

    def _get_no_batch_dim(self) -> int:  # torch's own is opaque to an older Dynamo
        return 3


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    __doc__ = f"""Instance normalization over (N, C, D, H, W) or (C, D, H, W).\n{_InstanceNorm.__doc__}"""

    _check_input_dim = nn.InstanceNorm3d._check_input_dim

    def _get_no_batch_dim(self) -> int:  # torch's own is opaque to an older Dynamo
        return 4
