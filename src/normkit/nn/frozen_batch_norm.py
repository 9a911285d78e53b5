"""FrozenBatchNorm1d, 2d, 3d: batch norm with fixed statistics and fixed scale and shift, whatever train() says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from ..functional.batch_norm import BatchNormSpec
from ..functional.road import run
from ..functional.running import Running
from .base import Given, TrackedNorm


class _FrozenBatchNorm(TrackedNorm, nn.Module):
    r"""Frozen batch normalization: the running statistics, scale and shift of a trained batch norm, all constant.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{running\_mean}}{\sqrt{\mathrm{running\_var} + \epsilon}}
              \cdot \mathrm{weight} + \mathrm{bias} + \mathrm{residual}\Big)

    All four are buffers of shape (C,), so no optimizer finds them, ``train()`` changes nothing, and gradients reach
    the input (and the residual) alone. It is no torch BatchNorm: helpers that reset or re-estimate statistics leave it.

    State: weight, bias, running_mean, running_var, as torchvision's. Loads the state of a torch or normkit batch norm
    (its counter is dropped; absent weight and bias of affine=False or bias=False are 1 and 0), of torchvision's
    FrozenBatchNorm2d, and of detectron2's, whose oldest files lack statistics (0 and 1 then).

    Args:
        num_features: C, the size of axis 1.
        eps: added to the variance, inside the square root.
        activation: None, a name in torch.nn.functional ("relu"), or a module; applied last.

    Call: ``bn(x, residual=None, mask=None, activation=None)``. residual: x's shape, added before the activation.
    mask: bool, (N, *) or (N, 1, *), True = a real value: outputs elsewhere are zero. activation: for this call, in
    place of the layer's own.

    Differences from torchvision: statistics stay float32 in half-precision modules; 1-d and 3-d exist; the rank of
    the input is checked.

    Raises:
        ValueError: the rank is wrong; torch's texts.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: None = None
    momentum = None
    track_running_stats = True
    _version = 3  # as detectron2's: from 2 on a file without statistics is broken, not old

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value, device=device, dtype=dtype))
        self._set_activation(activation)
        self._widen_statistics()

    def forward(
        self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None, activation: Given = None
    ) -> Tensor:
        """input: (N, C, *) -> the same shape, dtype and memory format."""
        if is_proxy(input):
            return module_node(self, input, residual=residual, mask=mask, activation=activation)
        self._check_input_dim(input)
        running = Running(self.running_mean, self.running_var, None, None)
        spec = BatchNormSpec(self._resolved_activation(activation), running, False, self.eps)
        return run(spec, input, *self._affine(), residual, mask)

    def extra_repr(self) -> str:
        """As torchvision's: the number of features and eps."""
        shown = f"{self.num_features}, eps={self.eps}"
        return f"{shown}, activation={self.activation!r}" if isinstance(self.activation, str) else shown

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *arguments: Any
    ) -> None:
        """Take what batch norms of several libraries save, as the class says."""
        state_dict.pop(prefix + "num_batches_tracked", None)
        mean, var, weight, bias = (prefix + n for n in ("running_mean", "running_var", "weight", "bias"))
        tracked = mean in state_dict or var in state_dict
        if tracked or weight in state_dict:  # affine=False and bias=False save no such tensor
            for key, value in ((weight, 1.0), (bias, 0.0)):
                if key not in state_dict:
                    state_dict[key] = torch.full_like(self.weight, value)
        if not tracked and weight in state_dict and (local_metadata.get("version") or 1) < 2:
            state_dict[mean], state_dict[var] = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


class FrozenBatchNorm1d(_FrozenBatchNorm):
    __doc__ = f"""Frozen batch normalization over (N, C) or (N, C, L).\n{_FrozenBatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class FrozenBatchNorm2d(_FrozenBatchNorm):
    __doc__ = f"""Frozen batch normalization over (N, C, H, W).\n{_FrozenBatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class FrozenBatchNorm3d(_FrozenBatchNorm):
    __doc__ = f"""Frozen batch normalization over (N, C, D, H, W).\n{_FrozenBatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm3d._check_input_dim
