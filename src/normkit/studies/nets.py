"""The two networks of the studies, with the norm as the only thing that changes between them.

conv_net: three 3x3 convolutions of stride 2, each followed by a norm and ReLU, then the mean over space and a linear
layer. deep_mlp: many equal linear layers, each followed by a norm and an activation. Layers before a norm have a bias
only when there is none: a norm would remove it. All weights come from one stream of standard normal numbers that the
seed alone begins, so networks of one shape start from the same draws whatever their norm and start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

import normkit as nk

from .data import Images

Norm = Literal["none", "batch", "group", "layer", "instance", "renorm", "frozen"]
Start = Literal["right", "glorot", "default", "unit"]
Place = Literal["before", "after", "both"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
MLP_SIDE = 14  # images are averaged down to 14x14 for the fully connected network: its cost is in depth, not in pixels


def conv_net(
    images: Images, norm: Norm, seed: int, width: int = 16, make: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """(N, C, H, W) -> (N, classes); `make` gives the norm of so many channels where it is none of those named."""
    sizes = [images.channels, width, 2 * width, 2 * width]
    layers: list[nn.Module] = []
    for channels, out in pairwise(sizes):
        layers.append(nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=norm == "none" and make is None))
        layers += [make(out)] if make else _norm_2d(norm, out)
        layers.append(nn.ReLU())
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], images.classes))
    _draw(model, seed, lambda weight: math.sqrt(2 / weight[0].numel()))
    return model


def deep_mlp(
    images: Images,
    norm: Norm,
    activation: str,
    depth: int,
    seed: int,
    *,
    width: int = 64,
    start: Start = "right",
    gain: float = 1.0,
    place: Place = "before",
    make: Callable[[int], nn.Module] = nk.BatchNorm1d,
) -> nn.Sequential:
    """(N, C, H, W) -> (N, classes) through `depth` layers of `width` units; `gain` scales the start of all of them."""
    side = min(MLP_SIDE, images.train_x.shape[-1])
    sizes = [images.channels * side * side, *[width] * depth]
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    for features, out in pairwise(sizes):
        layers.append(nn.Linear(features, out, bias=norm == "none" or place == "after"))
        layers += [make(out)] if norm == "batch" and place != "after" else []
        layers.append(ACTIVATIONS[activation]())
        layers += [make(out)] if norm == "batch" and place != "before" else []
    last = nn.Linear(width, images.classes)
    _draw(nn.Sequential(*layers), seed, lambda weight: gain * _deviation(weight, activation, start))
    _draw(nn.Sequential(last), seed + 1_000_003, lambda weight: math.sqrt(1 / weight.shape[1]))
    if activation == "sigmoid" and start == "right":
        _centre([layer for layer in layers if isinstance(layer, nn.Linear)][1:])
    return nn.Sequential(*layers, last)


def _deviation(weight: Tensor, activation: str, start: Start) -> float:
    """Of a weight's start. right: He et al. 2015 for ReLU, Glorot & Bengio 2010 for tanh, 4 times that for sigmoid.

    A sigmoid has the slope 1/4 at 0. default: that of torch.nn.Linear, 1 / sqrt(3 n); unit: 1.
    """
    out, features = weight.shape
    glorot = math.sqrt(2 / (features + out))
    right = {"relu": math.sqrt(2 / features), "sigmoid": 4 * glorot, "tanh": glorot}[activation]
    return {"right": right, "glorot": glorot, "default": 1 / math.sqrt(3 * features), "unit": 1.0}[start]


def _centre(layers: list[nn.Linear]) -> None:
    """Biases that take away what the sigmoid's mean of 1/2 puts in."""
    with torch.no_grad():
        for layer in layers:
            if layer.bias is not None:
                layer.bias.copy_(-0.5 * layer.weight.sum(1))


def _draw(model: nn.Module, seed: int, deviation: Callable[[Tensor], float]) -> None:
    """Normal weights of the deviation that `deviation(weight)` says; biases 0."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=deviation(layer.weight), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _norm_2d(norm: Norm, channels: int) -> list[nn.Module]:
    made: dict[str, Callable[[], Any]] = {
        "batch": lambda: nk.BatchNorm2d(channels),
        "group": lambda: nk.GroupNorm(4, channels),
        "layer": lambda: nk.GroupNorm(1, channels),
        "instance": lambda: nk.GroupNorm(channels, channels),
    }
    return [made[norm]()] if norm in made else []
