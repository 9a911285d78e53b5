"""The fast road for forwards that are known: one kernel gives a layer's output and its input's statistics."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import _shapes
from .._activation import NONE, Activation
from ..functional._choose import choose
from ..functional._fused import after
from ..functional._running import Running
from ..functional.batch_norm import apply, verify
from ..kernels import native
from ..model.families import author_of_forward
from ..moments import Moments
from ..nn._base import TrackedNorm
from .layers import running_statistics
from .sample import Sample


def is_known(layer: nn.Module) -> bool:
    """Whether the layer's forward is torch's or normkit's own batch norm, so that `by_own_statistics` stands for it."""
    if not isinstance(layer, _BatchNorm) or "forward" in layer.__dict__ or not layer.eps > 0:
        return False
    return author_of_forward(layer) == ("normkit" if isinstance(layer, TrackedNorm) else "torch")


def by_own_statistics(
    layer: nn.Module, input: Tensor, residual: Tensor | None = None, mask: None = None
) -> tuple[Tensor, Sample]:
    """A known layer's output under its input's statistics, never another rank's, and these statistics.

    input: (N, C, *), more than one value per channel.
    """
    assert isinstance(layer, _BatchNorm)
    layer._check_input_dim(input)
    weight, bias = layer.weight, layer.bias
    activation = layer._resolved_activation() if isinstance(layer, TrackedNorm) else NONE
    verify(input, None, weight, bias, True, layer.eps, residual)
    if choose("batch_norm", input, activation, None, (residual, weight, bias))[0] != "native":
        y, moments = _by_any_path(layer, input, residual, activation)
        return y, Sample.of(moments)
    fused = activation.code in native.FUSED_ACTIVATIONS
    y, stats, _ = native.batch_norm_forward(
        input, weight, bias, residual if fused else None, activation.code if fused else NONE.code, activation.param,
        layer.eps, save_for_backward=False,
    )  # fmt: skip
    return y if fused else after(y, residual, activation), Sample(_shapes.values_per_channel(input.shape), stats)


def _by_any_path(
    layer: _BatchNorm, input: Tensor, residual: Tensor | None, activation: Activation
) -> tuple[Tensor, Moments]:
    seen: list[Moments] = []
    running = Running(*running_statistics(layer), None, layer.momentum, seen)
    y = apply(input, running, layer.weight, layer.bias, True, layer.eps, residual=residual, activation=activation)
    return y, seen[0] if seen else Moments.of(input, _shapes.batch_dims(input.dim()))
