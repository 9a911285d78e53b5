"""The two networks of the studies, with the norm as the only thing that changes between them.

conv_net: three 3x3 convolutions of stride 2, each followed by a norm and ReLU, then the mean over space and a linear
layer. deep_mlp: many equal linear layers, each followed by a norm and an activation. Layers before a norm have a bias
only when there is none: a norm would remove it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import nn

import normkit as nk

from .data import Images

Norm = Literal["none", "batch", "group"]
MLP_SIDE = 14  # images are averaged down to 14x14 for the fully connected network: its cost is in depth, not in pixels


def conv_net(images: Images, norm: Norm, width: int = 16, groups: int = 4) -> nn.Sequential:
    """(N, C, H, W) -> (N, classes)."""
    sizes = [images.channels, width, 2 * width, 2 * width]
    layers: list[nn.Module] = []
    for channels, out in pairwise(sizes):
        layers.append(nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=norm == "none"))
        layers += [*_norm_2d(norm, out, groups), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], images.classes))
    _initialize(model, "relu")
    return model


def deep_mlp(images: Images, norm: Norm, activation: Callable[[], nn.Module], depth: int, width: int) -> nn.Sequential:
    """(N, C, H, W) -> (N, classes) through `depth` layers of `width` units."""
    side = min(MLP_SIDE, images.train_x.shape[-1])
    sizes = [images.channels * side * side, *[width] * depth]
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    for features, out in pairwise(sizes):
        layers.append(nn.Linear(features, out, bias=norm == "none"))
        layers += [nk.BatchNorm1d(out)] if norm == "batch" else []
        layers.append(activation())
    model = nn.Sequential(*layers, nn.Linear(width, images.classes))
    _initialize(model, "relu" if activation is nn.ReLU else "sigmoid")
    return model


def _norm_2d(norm: Norm, channels: int, groups: int) -> list[nn.Module]:
    if norm == "batch":
        return [nk.BatchNorm2d(channels)]
    return [nk.GroupNorm(groups, channels)] if norm == "group" else []


def _initialize(model: nn.Sequential, nonlinearity: Literal["relu", "sigmoid"]) -> None:
    """He et al. 2015 for ReLU, Glorot & Bengio 2010 for sigmoid: each network gets the start that suits it best."""
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            if nonlinearity == "relu":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
