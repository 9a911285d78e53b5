"""What the layers have in common: statistics that stay float32, the extras in repr, no torch.jit.script."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from .._activation import NONE, Activation, resolve
from ..functional.running import Running, Update
from .rebuilt import CHANNELS, EPS, setting

SMALL_BATCH = ("error", "running")
_FLOAT32 = torch.float32  # one lookup less in every call
Given: TypeAlias = "str | nn.Module | Activation | None"  # an activation given to one call


class Norm(nn.Module):
    """Mixin of every layer: an optional fused activation, and a clear refusal of torch.jit.script."""

    # no value here: a class attribute would hide the registered module of the same name
    activation: str | nn.Module | None

    if not TYPE_CHECKING:  # plain attributes of torch's layers; our own code reads them in __dict__
        eps, num_features = setting("eps", *EPS), setting("num_features", *CHANNELS)

    def _set_activation(self, activation: str | nn.Module | None) -> None:
        resolve(activation)  # raises for what is no activation
        self.activation = activation

    def _affine(self) -> tuple[Any, Any]:
        """weight and bias, without nn.Module.__getattr__, which costs as much as a small kernel."""
        own = self._parameters
        try:
            return own["weight"], own["bias"]
        except KeyError:  # parametrized, pruned, or set as plain attributes
            return self.weight, self.bias

    def _resolved_activation(self, given: Given = None) -> Activation:
        """The activation of a call: the one given to it, else the layer's own."""
        if given is None:
            given = self.activation
        return NONE if given is None else resolve(given)

    def extra_repr(self) -> str:
        """The arguments as torch prints them; an activation given by name follows."""
        shown = super().extra_repr()
        return f"{shown}, activation={self.activation!r}" if isinstance(self.activation, str) else shown

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError(
            f"torch.jit.script cannot compile normkit's {type(self).__name__}: use torch.export or torch.jit.trace, "
            "or turn the model back with normkit.convert(model, 'torch') first"
        )


class TrackedNorm(Norm):
    """Mixin of layers with running statistics, which stay float32 or wider whatever happens to the module's dtype.

    The ways by which a half-precision statistic would come in: the constructor's dtype, the default dtype,
    ``.half()`` and the like (`_apply`), ``load_state_dict(assign=True)``, an assignment, and a write into ``_buffers``,
    as accelerate's loaders do: that is seen in evaluation and when the mode is set. It is not seen in a training call,
    since `torch.func.functional_call` puts tensors in the same place, and they are the ones that must move.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    momentum: float | None
    track_running_stats: bool
    # what normkit.deferred_statistics holds back, or None
    _deferred: list[Update] | None = None

    def _widen_statistics(self) -> None:
        for name, buffer in self._statistics().items():
            if is_narrow(buffer):
                self._buffers[name] = buffer.float()

    def _statistics(self) -> dict[str, Tensor]:
        found = {name: self._buffers.get(name) for name in ("running_mean", "running_var")}
        return {name: buffer for name, buffer in found.items() if buffer is not None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrackedNorm:
        before = self._statistics()
        super()._apply(fn, recurse)
        for name, new in self._statistics().items():
            if is_narrow(new):
                # the original, not the rounded copy; on meta there is none
                source = new if before[name].is_meta else before[name]
                self._buffers[name] = source.to(device=new.device, dtype=torch.float32)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("running_mean", "running_var"):
            self._widen_statistics()

    def train(self, mode: bool = True) -> TrackedNorm:
        """As torch's; narrow statistics that came by another way are made wide."""
        self._widen_statistics()
        super().train(mode)
        return self

    def _given_statistics(self) -> tuple[Any, Any]:
        """running_mean and running_var of a call, by one lookup each: nn.Module's costs as much as a small kernel."""
        try:
            return self._buffers["running_mean"], self._buffers["running_var"]
        except KeyError:  # somebody has assigned Parameters in their place
            return self.running_mean, self.running_var

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._widen_statistics()

    def _running(self) -> Running | None:
        """Where this call's running statistics are; None when they are neither used nor moved."""
        if not self.training:
            return self._fixed_running()
        mean, var = self._given_statistics()
        if not self.track_running_stats or mean is None or var is None:
            return None
        batches, momentum = self._buffers["num_batches_tracked"], self.momentum
        if momentum is None and batches is None:
            return None  # nothing counts the batches of a cumulative average: like torch, do not move
        return Running(mean, var, batches, momentum, self._deferred)

    def _fixed_running(self) -> Running | None:
        """The same for a call that moves nothing; statistics that came in half precision are made wide first."""
        mean, var = self._given_statistics()
        if mean is None or var is None:
            if mean is var:
                return None
            raise RuntimeError(f"running_{'mean' if mean is None else 'var'} must be defined in evaluation mode")
        if mean.dtype is not _FLOAT32 or var.dtype is not _FLOAT32:
            self._widen_statistics()
            mean, var = self._given_statistics()
        return Running(mean, var, None, None, None)


def is_narrow(tensor: Tensor) -> bool:
    """Whether a floating-point tensor has less than 32 bits."""
    return tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4


def verify_small_batch(small_batch: str) -> str:
    """`small_batch` if it is a known policy; ValueError otherwise."""
    if small_batch not in SMALL_BATCH:
        raise ValueError(f"small_batch must be 'error' (as torch) or 'running', got {small_batch!r}")
    return small_batch
