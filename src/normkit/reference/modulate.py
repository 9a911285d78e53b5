"""Modulation of a norm's output (FiLM: Perez et al. 2018; SPADE: Park et al. 2019; DiT: Peebles & Xie 2023).

y: a norm's output, its own weight and bias included; scale, shift broadcast against y, of the same rank:

    z = scale * y + shift        dy = dz * scale        dscale = sum(dz * y)        dshift = sum(dz)

The sums run over the axes that scale and shift are broadcast along. No statistic depends on scale or shift, so dy is
what the norm's own backward begins with.
"""

from __future__ import annotations

from torch import Tensor

from normkit.reference._moments import total


def modulate(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """z, of y's shape."""
    return scale * y + shift


def modulate_backward(dz: Tensor, y: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(dy: y's shape, dscale, dshift: their own shapes) from dz: y's shape."""
    return dz * scale, _summed(dz * y, scale), _summed(dz, shift)


def broadcast_axes(tensor: Tensor, y: Tensor) -> tuple[int, ...]:
    """The axes that a tensor of y's rank is broadcast along."""
    if tensor.ndim != y.ndim:
        raise ValueError(f"expected a tensor of {y.ndim} axes (got {tensor.ndim})")
    return tuple(axis for axis in range(y.ndim) if tensor.shape[axis] == 1 != y.shape[axis])


def _summed(terms: Tensor, like: Tensor) -> Tensor:
    axes = broadcast_axes(like, terms)
    return total(terms, axes) if axes else terms
