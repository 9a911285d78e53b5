"""Whether a layer that is not exactly torch's is affine in its weight and bias, found out with numbers.

Rules: a probe runs on a copy with parameters and inputs of its own; what it cannot show is refused with a reason.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import has_own_forward
from .affine import Affine, Weights, fold_after, fold_before

_PLAIN_LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def takes_affine(layer: nn.Module, shape: tuple[int, ...], channels: int, *, after: bool) -> str | None:
    """Why folding an affine map after (or before) `layer` is not exact for this class, or None.

    A class of torch.nn is known. A subclass (a convolution that pads itself, or standardizes its weight) is folded on
    a copy, in float64 and with random parameters, on inputs of `shape` and a few sizes beside it, and must give what
    it should.
    """
    if type(layer) in _PLAIN_LAYERS and not has_own_forward(layer):
        return None
    try:
        exact = all(_folds(layer, size, channels, after) for size in _sizes(layer, shape, after))
    except Exception as error:
        return f"a {type(layer).__name__} fails on a probe ({type(error).__name__}: {error})"
    if exact:
        return None
    return f"a probe shows that the output of {type(layer).__name__} is not affine in its weight and bias"


def _sizes(layer: nn.Module, shape: tuple[int, ...], after: bool) -> list[tuple[int, ...]]:
    """The size of the run; for a fold in front, where borders count, its neighbours too (padding that depends on
    it)."""
    leading = (1, *shape[1:])
    if after or isinstance(layer, nn.Linear):
        return [leading]
    return [(*leading[:2], *(size + more for size in leading[2:])) for more in range(4)]


def _folds(layer: nn.Module, shape: tuple[int, ...], channels: int, after: bool) -> bool:
    plain: Any = copy.deepcopy(layer).double().cpu()
    random = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=random))
    folded = copy.deepcopy(plain)
    affine = Affine(*(torch.rand(channels, generator=random, dtype=torch.float64) + 0.5 for _ in range(2)))
    (fold_after if after else fold_before)(folded, Weights.of(folded), affine).write(folded)
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    with torch.no_grad():
        expected = apply(affine, plain.forward(x)) if after else plain.forward(apply(affine, x))
        return torch.allclose(folded.forward(x), expected, rtol=1e-9, atol=1e-9)


def apply(affine: Affine, x: Tensor) -> Tensor:
    """scale * x + shift. x: (N, C, *)."""
    ones = [1] * (x.dim() - 2)
    return x * affine.scale.view(-1, *ones) + affine.shift.view(-1, *ones)
