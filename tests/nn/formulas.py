"""Every layer with no option at its default, and its formula as plain operations: what each option has to change.

A formula is (layer, x, keep) -> xhat. x: (N, C, H, W) float64. keep: bool, broadcasts against x, the values that a mask
keeps; the norms of rows and pixels have their statistics from all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from tests.cases import EPS, MOMENTUM, gaussian, generator
from tests.conformance.compare import randomize

SHAPE = (5, 6, 4, 7)
SLICES = [3, 2]  # of a ghost batch of 3 at most
SLOPE, R_MAX, D_MAX = 0.3, 1.25, 0.375  # of the activation; limits that some channels reach and some do not
IMAGE, BATCH = (2, 3), (0, 2, 3)  # the axes that one statistic covers


def moments(x: Tensor, keep: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, biased variance) of the values that are kept; the axes stay, with size 1."""
    count = keep.expand_as(x).sum(dims, keepdim=True)
    mean = torch.where(keep, x, 0).sum(dims, keepdim=True) / count
    return count, mean, torch.where(keep, x - mean, 0).square().sum(dims, keepdim=True) / count


def over(dims: tuple[int, ...], layer: Any, x: Tensor, keep: Tensor) -> Tensor:
    _, mean, var = moments(x, keep, dims)
    return (x - mean) / (var + EPS).sqrt()


def over_all(dims: tuple[int, ...], layer: Any, x: Tensor, keep: Tensor) -> Tensor:
    return over(dims, layer, x, torch.ones_like(x, dtype=torch.bool))


def grouped(layer: Any, x: Tensor, keep: Tensor) -> Tensor:
    return over((2, 3, 4), layer, x.unflatten(1, (3, 2)), keep.unsqueeze(1)).flatten(1, 2)


def root_mean_square(layer: Any, x: Tensor, keep: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


def given(layer: Any, x: Tensor, keep: Tensor) -> Tensor:
    mean, var = (buffer.reshape(-1, 1, 1) for buffer in (layer.running_mean, layer.running_var))
    return (x - mean) / (var + EPS).sqrt()


def sliced(layer: Any, x: Tensor, keep: Tensor) -> Tensor:
    parts = zip(x.split(SLICES), keep.split(SLICES), strict=True)
    return torch.cat([over(BATCH, layer, *part) for part in parts])


def renormalized(layer: Any, x: Tensor, keep: Tensor) -> Tensor:
    _, mean, var = moments(x.detach(), keep, BATCH)
    mean_run, var_run = (buffer.reshape(-1, 1, 1) for buffer in (layer.running_mean, layer.running_var))
    sigma = (var_run + EPS).sqrt()
    r, d = (var + EPS).sqrt() / sigma, (mean - mean_run) / sigma
    return over(BATCH, layer, x, keep) * r.clamp(1 / R_MAX, R_MAX) + d.clamp(-D_MAX, D_MAX)


@dataclass(frozen=True)
class Case:
    """make: the layer, but for its activation. training, evaluation: its formulas.

    tracks: the axes of the statistics that training moves. positions: the axes of a mask.
    """

    make: Callable[..., nn.Module]
    training: Callable[[Any, Tensor, Tensor], Tensor]
    evaluation: Callable[[Any, Tensor, Tensor], Tensor]
    tracks: tuple[int, ...] = ()
    positions: tuple[int, ...] = BATCH
    takes_residual: bool = True
    has_aten: bool = True

    def layer(self) -> Any:
        """In float64, with parameters and statistics that tell, and an activation with a number of its own."""
        layer = self.make(activation=nn.LeakyReLU(SLOPE)).double()
        randomize(layer)
        return layer

    def draw(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """x, a residual where the layer takes one, a mask."""
        g = generator(5)
        x, residual = (gaussian(SHAPE, g, mean=0.5, std=0.7).requires_grad_() for _ in range(2))
        mask = torch.rand([SHAPE[axis] for axis in self.positions], generator=g) < 0.7
        return x, residual if self.takes_residual else None, mask

    def beside(self, mask: Tensor) -> Tensor:
        """The mask with the input's rank."""
        return mask.reshape([SHAPE[axis] if axis in self.positions else 1 for axis in range(4)])

    def output(self, layer: Any, x: Tensor, residual: Tensor | None, keep: Tensor) -> Tensor:
        """The layer's output by the formula."""
        z = (self.training if layer.training else self.evaluation)(layer, x, keep)
        of_channels = self.positions == BATCH
        for parameter, apply in ((layer.weight, torch.mul), (getattr(layer, "bias", None), torch.add)):
            if parameter is not None:
                z = apply(z, parameter.reshape(-1, 1, 1) if of_channels else parameter)
        return torch.where(keep, F.leaky_relu(z if residual is None else z + residual, SLOPE), 0)

    def moved(self, layer: Any, x: Tensor, keep: Tensor) -> list[Tensor]:
        """Where one training call moves running_mean and running_var; nowhere if nothing is tracked."""
        if not self.tracks or not layer.training:
            return []
        count, mean, var = moments(x.detach(), keep, self.tracks)
        news = (each.mean(0).flatten() for each in (mean, var * count / (count - 1)))
        olds = (layer.running_mean, layer.running_var)
        return [(1 - MOMENTUM) * old + MOMENTUM * new for old, new in zip(olds, news, strict=True)]


def _alike(make: Callable[..., nn.Module], formula: Any, **options: Any) -> Case:
    """A layer that does the same in training and evaluation."""
    return Case(make, formula, formula, **options)


ROWS: dict[str, Any] = {"positions": (0, 1, 2), "takes_residual": False}
OF_BATCH = (6, EPS, MOMENTUM)
CASES = {
    "batch": Case(partial(nk.BatchNorm2d, *OF_BATCH), partial(over, BATCH), given, BATCH),
    "frozen": _alike(partial(nk.FrozenBatchNorm2d, 6, EPS), given),
    "ghost": Case(
        partial(nk.GhostBatchNorm2d, *OF_BATCH, virtual_batch_size=3), sliced, given, BATCH, has_aten=False
    ),
    "renorm": Case(
        partial(nk.BatchRenorm2d, *OF_BATCH, r_max=R_MAX, d_max=D_MAX, warm_up=(0, 0, 0)),
        renormalized, given, BATCH, has_aten=False,
    ),
    "sync": Case(partial(nk.SyncBatchNorm, *OF_BATCH), partial(over, BATCH), given, BATCH),
    "group": _alike(partial(nk.GroupNorm, 3, 6, EPS), grouped),
    "instance": _alike(partial(nk.InstanceNorm2d, 6, EPS, affine=True), partial(over, IMAGE)),
    "instance, tracked": Case(
        partial(nk.InstanceNorm2d, *OF_BATCH, affine=True, track_running_stats=True), partial(over, IMAGE), given, IMAGE
    ),
    "layer": _alike(partial(nk.LayerNorm, 7, EPS), partial(over_all, (3,)), **ROWS),
    "layer, two axes": _alike(
        partial(nk.LayerNorm, (4, 7), EPS), partial(over_all, (2, 3)), positions=(0, 1), takes_residual=False
    ),
    "layer 2d": _alike(partial(nk.LayerNorm2d, 6, EPS), partial(over_all, (1,)), takes_residual=False),
    "rms": _alike(partial(nk.RMSNorm, 7, EPS), root_mean_square, **ROWS),
}  # fmt: skip
