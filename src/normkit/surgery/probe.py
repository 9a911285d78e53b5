"""What a layer that is not exactly torch's or ours computes, found out with numbers instead of by its name.

Rules: a probe runs on a copy with parameters and inputs of its own, so nothing hangs on the values that the layer
holds, and its random state is its own. What a probe cannot show is refused with a reason.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.families import BATCH_FAMILIES, author_of_forward, channels, eps, family, rank
from .affine import Affine, Weights, fold_after, fold_before

# Both sides compute the same formula in float32 with values of order one; the error is some tens of roundings (6e-8).
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Structure:
    """A layer is activation(norm(x)); `activation` is None, a name of torch.nn.functional, or a module."""

    activation: str | nn.Module | None


def structure(norm: nn.Module, modes: tuple[bool, ...] = (False, True)) -> Structure | str:
    """How the layer is made of its family's norm and an activation, or the reason why that is not known.

    modes: the values of `training` for which it must hold.
    """
    if "forward" in norm.__dict__:
        return "its forward was replaced on the instance"
    if author_of_forward(norm) == "normkit":
        return Structure(norm.activation)  # type: ignore[arg-type]  # every layer of normkit.nn has it
    if author_of_forward(norm) == "torch":
        return Structure(None)
    try:
        return _probed(norm, modes)
    except Exception as error:
        return f"a subclass with a forward of its own, which fails on a probe ({type(error).__name__}: {error})"


def _probed(norm: nn.Module, modes: tuple[bool, ...]) -> Structure | str:
    steps = [child for child in norm.children() if not isinstance(child, nn.Identity)]
    for training in modes:
        probe, x = _prepared(norm, training)
        expected = _reference(probe, x)
        for step in [child for child in probe.children() if not isinstance(child, nn.Identity)]:
            expected = step(expected)
        with torch.no_grad():
            if not torch.allclose(probe.forward(x), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                return "a subclass with a forward of its own that is not an activation of the norm"
    if len(steps) > 1:
        return Structure(nn.Sequential(*steps))
    return Structure(steps[0] if steps else None)


def _prepared(norm: nn.Module, training: bool) -> tuple[Any, Tensor]:
    """A float32 copy with parameters of order one, and an input for it: (4, C, 3, ...)."""
    probe: Any = copy.deepcopy(norm).float().cpu().train(training)
    random = torch.Generator().manual_seed(0)
    for tensor in (*probe.parameters(recurse=False), *probe.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=random) + 0.5)
    spatial = 2 if rank(norm) is None else rank(norm)
    across = family(norm) in ("layer", "rms")
    shape = (4, 3, *probe.normalized_shape) if across else (4, channels(probe), *[3] * (spatial or 0))
    return probe, torch.randn(shape, generator=random)


def _reference(norm: Any, x: Tensor) -> Tensor:
    kind = family(norm)
    weight, bias = norm.weight, getattr(norm, "bias", None)
    if kind in BATCH_FAMILIES:
        batch = norm.training and kind != "frozen"
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        return F.batch_norm(x, mean, var, weight, bias, batch, 0.1, eps(norm))
    if kind == "group":
        return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
    if kind == "layer2d":
        return F.layer_norm(x.movedim(1, -1), norm.normalized_shape, weight, bias, norm.eps).movedim(-1, 1)
    if kind == "layer":
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
    if kind == "instance":
        return F.instance_norm(x, weight=weight, bias=bias, eps=norm.eps)
    return F.rms_norm(x, norm.normalized_shape, weight, norm.eps)


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
    if type(layer) in _PLAIN_LAYERS and "forward" not in layer.__dict__:
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
