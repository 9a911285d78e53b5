"""What the page shows and normkit computes: a norm of four values, feature maps, the scale of the weights.

All float64 but where it says otherwise; values are rounded for the page after they were computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import nn as layers
from ..info import version
from . import runs
from .own import Own

FILTERS = torch.tensor(  # 3x3: blur, sharpen, edges in four directions, a spot, a corner
    [
        [[1, 2, 1], [2, 4, 2], [1, 2, 1]],
        [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
        [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
        [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
        [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]],
        [[2, 1, 0], [1, 0, -1], [0, -1, -2]],
        [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
        [[2, 2, -1], [2, 2, -1], [-1, -1, -4]],
    ],
    dtype=torch.float64,
)
EPS = 1e-5
SHOWN = 4  # images in the batch whose first one's outputs are embedded
GROUPS = 2


def collect(own: Own = Own()) -> dict[str, Any]:  # noqa: B008  # frozen
    """Everything that the page embeds; by default its images are six digits and its values drawn."""
    data = runs.shipped()
    digits = torch.tensor(data["digits"], dtype=torch.float64).reshape(6, 14, 14) / 255
    return {
        "normkit": version(),
        "about": {"commit": data["commit"], "rule": data["rule"]},
        "four": four([1.0, 2.0, 4.0, 9.0]),
        "maps": maps(digits if own.images is None else own.images),
        "values": None if own.values is None else own.values.tolist(),
        "scale": scale(),
        **{name: data[name] for name in ("moving", "gradients", "race")},
    }


def four(x: list[float], gamma: float = 1.0, beta: float = 0.0, eps: float = EPS) -> dict[str, Any]:
    """One channel through normkit.BatchNorm1d."""
    layer = layers.BatchNorm1d(1, eps=eps).double()
    with torch.no_grad():
        layer.weight.fill_(gamma)
        layer.bias.fill_(beta)
        y = layer(torch.tensor(x, dtype=torch.float64)[:, None])[:, 0]
    return {"x": x, "eps": eps, "y": y.tolist()}


def maps(images: Tensor) -> dict[str, Any]:
    """Eight feature maps of each image, (6, 8, 12, 12), and those of the first after four norms of the first four."""
    x = torch.nn.functional.conv2d(images[:, None], FILTERS[:, None] / FILTERS.abs().sum((1, 2))[:, None, None, None])
    x = (x * 1000).round() / 1000  # what the page holds is what normkit normalizes
    norms: Mapping[str, torch.nn.Module] = {
        "batch": layers.BatchNorm2d(8, eps=EPS).double(),
        "layer": layers.GroupNorm(1, 8, eps=EPS).double(),
        "instance": layers.InstanceNorm2d(8, eps=EPS).double(),
        "group": layers.GroupNorm(GROUPS, 8, eps=EPS).double(),
    }
    with torch.no_grad():
        outputs = {name: _rounded(norm(x[:SHOWN])[0].flatten(1), 7) for name, norm in norms.items()}
    return {"size": x.shape[-1], "features": _rounded(x.flatten(2), 3), "outputs": outputs}


def scale() -> dict[str, Any]:
    """BN((a w) u) for 16 inputs of 3 features: the inputs, and the length of dL/d(a w) at nine a and eps 1e-5."""
    generator = torch.Generator().manual_seed(0)
    u = (torch.randn(16, 3, generator=generator, dtype=torch.float64) * 100).round() / 100
    dy = (torch.randn(16, generator=generator, dtype=torch.float64) * 100).round() / 100
    w = torch.tensor([0.5, -0.4, 0.3], dtype=torch.float64)
    layer, grid = layers.BatchNorm1d(1, eps=EPS).double(), []
    for a in [10 ** (power / 2) for power in range(-4, 5)]:
        scaled = (a * w).requires_grad_()
        (gradient,) = torch.autograd.grad((layer((u @ scaled)[:, None])[:, 0] * dy).sum(), scaled)
        grid.append({"a": a, "length": gradient.norm().item()})
    return {"u": u.tolist(), "w": w.tolist(), "dy": dy.tolist(), "grid": grid}


def _rounded(x: Tensor, digits: int) -> list[Any]:
    """The values as lists, rounded, -0 as 0."""
    made: list[Any] = ((x * 10**digits).round() / 10**digits + 0.0).tolist()
    return made
