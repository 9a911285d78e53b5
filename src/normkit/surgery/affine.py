"""The arithmetic of folding: y = scale * x + shift per channel, put into the weight and bias of a neighbour.

Rules: everything is computed in float64 (float32 where the device has no float64) and rounded once, when it is written
into the parameters that are there: the objects stay, and half-precision weights do not pass through half-precision
products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._precision import wide_dtype
from .._torch import ConvBase, TransposedConvBase
from ..model.families import eps

_TRANSPOSED = TransposedConvBase
_CONVOLUTION = ConvBase


@dataclass(frozen=True)
class Affine:
    """What a normalization layer in evaluation does to a channel. scale, shift: (C,)."""

    scale: Tensor
    shift: Tensor

    @property
    def finite(self) -> bool:
        return bool(self.scale.isfinite().all() and self.shift.isfinite().all())

    def repeated(self, times: int) -> Affine:
        """Each channel `times` times in a row: the same map after (N, C, *) became (N, C * times)."""
        return Affine(self.scale.repeat_interleave(times), self.shift.repeat_interleave(times))


@dataclass(frozen=True)
class Weights:
    """What a layer will hold. weight: the layer's shape; bias: (C,) or None; both in the precision of `wide`."""

    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def of(layer: Any) -> Weights:
        return Weights(wide(layer.weight), None if layer.bias is None else wide(layer.bias))

    def write(self, layer: Any) -> None:
        """Into the layer's own parameters; one that it lacks is made."""
        with torch.no_grad():
            layer.weight.copy_(self.weight)
            if self.bias is not None and layer.bias is not None:
                layer.bias.copy_(self.bias)
            elif self.bias is not None:
                new = self.bias.to(dtype=layer.weight.dtype, device=layer.weight.device)
                layer.bias = nn.Parameter(new, requires_grad=layer.weight.requires_grad)


def affine_of(norm: Any) -> Affine:
    """scale = weight / sqrt(running_var + eps), shift = bias - running_mean * scale."""
    mean, var = wide(norm.running_mean), wide(norm.running_var)
    scale = (var + eps(norm)).rsqrt()
    if norm.weight is not None:
        scale = scale * wide(norm.weight)
    shift = -mean * scale
    return Affine(scale, shift if norm.bias is None else shift + wide(norm.bias))


def fold_after(layer: Any, weights: Weights, affine: Affine) -> Weights:
    """With which `layer(x)` gives scale * layer(x) + shift. layer: convolution, transposed convolution, linear."""
    weight = weights.weight
    if isinstance(layer, _TRANSPOSED):  # (in, out / groups, *kernel); group g holds the g-th block of outputs
        scale = affine.scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (weight.unflatten(0, (layer.groups, -1)) * scale).flatten(0, 1)
    else:  # (out, in / groups, *kernel)
        weight = weight * affine.scale.view(-1, *[1] * (weight.dim() - 1))
    return Weights(weight, affine.shift if weights.bias is None else weights.bias * affine.scale + affine.shift)


def fold_before(layer: Any, weights: Weights, affine: Affine) -> Weights:
    """With which `layer(x)` gives layer(scale * x + shift), borders aside: `border` says when that is exact."""
    weight = weights.weight
    groups = getattr(layer, "groups", 1)
    ones = [1] * (weight.dim() - 2)
    if isinstance(layer, _TRANSPOSED):  # (groups, in / groups, out / groups, *kernel)
        grouped = weight.unflatten(0, (groups, -1))
        scale, shift = (t.view(groups, -1, 1, *ones) for t in (affine.scale, affine.shift))
        added = (grouped * shift).flatten(3).sum(-1).sum(1) if ones else (grouped * shift).sum(1)
        weight = (grouped * scale).flatten(0, 1)
    else:  # (groups, out / groups, in / groups, *kernel)
        grouped = weight.unflatten(0, (groups, -1))
        scale, shift = (t.view(groups, 1, -1, *ones) for t in (affine.scale, affine.shift))
        added = (grouped * shift).flatten(2).sum(-1)
        weight = (grouped * scale).flatten(0, 1)
    return Weights(weight, added.flatten() if weights.bias is None else weights.bias + added.flatten())


def border(layer: Any) -> str | None:
    """Why a shift in front of `layer` is no constant after it (a border of zeros is not shifted), or None."""
    if isinstance(layer, _TRANSPOSED):
        reach = (*layer.kernel_size, *layer.stride, *(1 + p for p in (*layer.padding, *layer.output_padding)))
        return None if set(reach) == {1} else "fewer taps meet at the border of a transposed convolution"
    if not isinstance(layer, _CONVOLUTION) or layer.padding_mode != "zeros":
        return None  # reflect, replicate and circular pad with values that the norm has shifted too
    return f"it pads with {layer.padding!r} zeros, which the norm's shift does not reach" if _pads(layer) else None


def _pads(layer: Any) -> bool:
    if layer.padding == "same":
        return any(size > 1 for size in layer.kernel_size)
    return layer.padding != "valid" and any(layer.padding)


def wide(tensor: Tensor) -> Tensor:
    """In the precision that folding computes in."""
    return tensor.detach().to(wide_dtype(tensor.device))
