"""FrozenBatchNorm1d, 2d, 3d: batch norm with fixed statistics and fixed scale and shift, whatever train() says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._fx import is_proxy, module_node
from .._operands import Maybe, Modulate
from ..functional.batch_norm import BatchNormSpec
from ..functional.road import run
from .base import Given, TrackedNorm

_IDENTITY = {"weight": 1, "bias": 0}


class _FrozenBatchNorm(TrackedNorm, nn.Module):
    r"""Frozen batch normalization: the running statistics, scale and shift of a trained batch norm, all constant.

    .. math:: y = \mathrm{activation}\Big(\frac{x - \mathrm{running\_mean}}{\sqrt{\mathrm{running\_var} + \epsilon}}
              \cdot \mathrm{weight} + \mathrm{bias} + \mathrm{residual}\Big)

    All four are buffers of shape (C,), so no optimizer finds them, ``train()`` changes nothing, and gradients reach
    the input (and the residual) alone. It is no torch BatchNorm: helpers that reset or re-estimate statistics leave it.

    State: what a batch norm of the same form saves: weight, bias (each unless it is None), running_mean, running_var,
    num_batches_tracked, so that a checkpoint goes from the frozen model to the plain one and back, strictly. The
    counter never moves; it is carried. Loads the state of a torch or normkit batch norm, of torchvision's and
    transformers' FrozenBatchNorm2d (no counter: it stays), and of detectron2's, whose oldest files lack statistics
    (0 and 1 then). Where a state has statistics and no weight or bias (affine=False, bias=False), a weight of 1 and
    a bias of 0 become None; others are missing keys, as in torch.

    Args:
        num_features: C, the size of axis 1.
        eps: added to the variance, inside the square root.
        affine: False: weight and bias are None, as in a batch norm with affine=False.
        bias: False: bias is None.
        activation: None, a name in torch.nn.functional ("relu"), or a module; applied last.

    Call: ``bn(x, residual=None, mask=None, activation=None, modulate=None)``. residual: x's shape, added before the
    activation. mask: bool, (N, *) or (N, 1, *), True = a real value: outputs elsewhere are zero. activation: for this
    call, in place of the layer's own. modulate: (scale, shift), each (N, C), or of x's rank that broadcasts to it, or
    None: scale * norm(x) + shift, before the residual.

    Differences from torchvision: statistics stay float32 in half-precision modules; 1-d and 3-d exist; the rank of
    the input is checked.

    Raises:
        ValueError: the rank is wrong; torch's texts.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum = None
    track_running_stats = True
    _holds: frozenset[str] = frozenset(("weight", "bias"))  # of these; what a state lacked may be None meanwhile
    _version = 3  # as detectron2's: from 2 on a file without statistics is broken, not old

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        affine: bool = True,
        bias: bool = True,
        activation: str | nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self._holds = frozenset(name for name, there in (("weight", affine), ("bias", affine and bias)) if there)
        for name in ("weight", "bias", "running_mean", "running_var"):
            there = name in self._holds or name not in _IDENTITY
            self.register_buffer(name, torch.empty(num_features, device=device, dtype=dtype) if there else None)
        self.register_buffer("num_batches_tracked", torch.empty((), device=device, dtype=torch.long))
        self._set_activation(activation)
        self._widen_statistics()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity but for eps: weight and variance 1, bias and mean 0, no batch counted; after ``to_empty()``."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                buffer.fill_(1 if name in ("weight", "running_var") else 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of a frozen layer that carried no counter get one."""
        super().__setstate__(state)
        if "num_batches_tracked" not in self._buffers:
            self.register_buffer("num_batches_tracked", self.running_mean.new_zeros((), dtype=torch.long))

    def forward(
        self, input: Tensor, residual: Maybe = None, mask: Maybe = None, activation: Given = None,
        modulate: Modulate = None,
    ) -> Tensor:  # fmt: skip
        """input: (N, C, *) -> the same shape, dtype and memory format."""
        if is_proxy(input):
            given = {"residual": residual, "mask": mask, "activation": activation, "modulate": modulate}
            return module_node(self, input, **given)
        self._check_input_dim(input)
        running = self._fixed_running()
        spec = BatchNormSpec(self._resolved_activation(activation), running, False, self.__dict__["eps"])
        return run(spec, input, *self._affine(), residual, mask, modulate)

    def _affine(self) -> tuple[Any, Any]:
        """weight and bias, which are buffers here."""
        own = self._buffers
        try:
            return own["weight"], own["bias"]
        except KeyError:  # somebody has assigned Parameters in their place
            return self.weight, self.bias

    def extra_repr(self) -> str:
        """As torchvision's: the number of features and eps; then what it has not."""
        shown = f"{self.num_features}, eps={self.eps}"
        if self.weight is None:
            shown = f"{shown}, affine=False"
        elif self.bias is None:
            shown = f"{shown}, bias=False"
        return f"{shown}, activation={self.activation!r}" if isinstance(self.activation, str) else shown

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *arguments: Any
    ) -> None:
        """Take what batch norms of several libraries save, as the class says."""
        mean, var, counter = (prefix + n for n in ("running_mean", "running_var", "num_batches_tracked"))
        weight, bias = state_dict.get(prefix + "weight"), state_dict.get(prefix + "bias")
        tracked = mean in state_dict or var in state_dict
        if not tracked and weight is not None and bias is not None and local_metadata.get("version") in (None, 1):
            like = weight.new_empty(weight.shape, dtype=torch.float32)
            state_dict[mean], state_dict[var] = torch.zeros_like(like), torch.ones_like(like)
        absent = {"weight": weight is None and bias is None, "bias": bias is None}  # no batch norm has bias alone
        for name, value in (("weight", weight), ("bias", bias)):
            mine = self._buffers[name]
            if value is not None and mine is None and name in self._holds:  # what an earlier part of the file lacked
                self._buffers[name] = torch.empty_like(self.running_mean, dtype=value.dtype)
            elif value is not None and mine is None and not value.is_meta and _is_identity(value, name):
                del state_dict[prefix + name]  # older files of frozen layers hold the identity in its place
            elif absent[name] and mean in state_dict and var in state_dict and _is_identity(mine, name):
                self._buffers[name] = None  # the same function, and the form that the state has
        if self.num_batches_tracked is None:
            state_dict.pop(counter, None)
        elif counter not in state_dict and mean in state_dict:
            own = self.num_batches_tracked  # on meta there is no number to keep
            state_dict[counter] = torch.tensor(0, device=state_dict[mean].device) if own.is_meta else own
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *arguments)

    def _stand_for(self, other: nn.Module) -> None:
        """Save and load what `other` does: its counter, and no weight or bias where it has none."""
        counter, like = other._buffers.get("num_batches_tracked"), self.running_mean
        self._buffers["num_batches_tracked"] = like.new_zeros((), dtype=torch.long) if counter is None else counter
        self._holds = frozenset(name for name in _IDENTITY if getattr(other, name, None) is not None)
        self._buffers.update(dict.fromkeys(_IDENTITY.keys() - self._holds))

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


def _is_identity(value: Tensor | None, name: str) -> bool:
    """Whether a weight is 1, a bias 0 throughout; on meta there is nothing that could be lost."""
    return value is None or value.is_meta or bool((value == _IDENTITY[name]).all())


class FrozenBatchNorm1d(_FrozenBatchNorm):
    __doc__ = f"""Frozen batch normalization over (N, C) or (N, C, L).\n{_FrozenBatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class FrozenBatchNorm2d(_FrozenBatchNorm):
    __doc__ = f"""Frozen batch normalization over (N, C, H, W).\n{_FrozenBatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class FrozenBatchNorm3d(_FrozenBatchNorm):
    __doc__ = f"""Frozen batch normalization over (N, C, D, H, W).\n{_FrozenBatchNorm.__doc__}"""

    _check_input_dim = nn.BatchNorm3d._check_input_dim
