"""The fast road for forwards that are known: one kernel gives a layer's output and its input's statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import _shapes
from .._activation import NONE
from .._operands import Maybe, Modulate, Operands
from .._torch import BatchNormBase, has_own_forward
from ..functional.batch_norm import BatchNormSpec
from ..functional.choose import choose
from ..functional.modulate import lay, pair
from ..functional.road import run
from ..functional.running import Running
from ..kernels import composed, native
from ..model.families import author_of_forward
from ..moments import Moments
from ..nn.base import TrackedNorm
from .layers import running_statistics
from .sample import Sample


def is_known(layer: nn.Module) -> bool:
    """Whether the layer's forward is torch's or normkit's own batch norm, so that `by_own_statistics` stands for it."""
    if not isinstance(layer, BatchNormBase) or has_own_forward(layer) or not layer.eps > 0:
        return False
    return author_of_forward(layer) == ("normkit" if isinstance(layer, TrackedNorm) else "torch")


def by_own_statistics(
    layer: nn.Module, input: Tensor, residual: Maybe = None, mask: None = None, activation: Any = None,
    modulate: Modulate = None,
) -> tuple[Tensor, Sample]:  # fmt: skip
    """A known layer's output under its input's statistics, never another rank's, and these statistics.

    input: (N, C, *), more than one value per channel. residual, activation, modulate: as in the layer's
    call.
    """
    assert isinstance(layer, BatchNormBase)
    layer._check_input_dim(input)
    after = layer._resolved_activation(activation) if isinstance(layer, TrackedNorm) else NONE
    norm = BatchNormSpec(after, None, True, layer.eps)
    _, operands = norm.verified(Operands(input, layer.weight, layer.bias, residual, None, *pair(modulate)))
    operands = lay(operands)
    if choose(norm, operands)[0] != "native":
        seen: list[Moments] = []
        running = Running(*running_statistics(layer), None, layer.momentum, seen)
        y = run(BatchNormSpec(after, running, True, layer.eps), *operands[:5], modulate)
        return y, Sample.of(seen[0] if seen else Moments.of(input, _shapes.batch_dims(input.dim())))
    fused = norm.is_fused(native, operands)
    given = operands if fused else composed.bare(operands)
    y, saved = native.batch_norm_forward(given, after if fused else NONE, layer.eps, save=False)
    y = y if fused else composed.add_and_activate(y, operands, after)
    return y, Sample(_shapes.values_per_channel(input.shape), saved.stats)
