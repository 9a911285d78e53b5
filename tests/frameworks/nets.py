"""A small network of norms, and arrays that show when one of them is lost or in another's place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import normkit as nk


class Net(nn.Module):
    """Images of 3 channels; every family."""

    def __init__(self, **batch: Any) -> None:
        super().__init__()
        self.bn1 = nk.BatchNorm2d(6, **batch)
        self.bn2 = nn.BatchNorm2d(6, **batch)
        self.gn = nn.GroupNorm(3, 6)
        self.ln = nk.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gn(self.bn2(torch.relu(self.bn1(x))))
        return self.ln(y.movedim(1, -1)).movedim(-1, 1)


def arrays(seed: int, channels: int = 6) -> dict[str, np.ndarray]:
    """gamma, beta, mean and var, (C,) float32, var positive."""
    rng = np.random.default_rng(seed)
    drawn = {name: rng.normal(size=channels).astype("float32") for name in ("gamma", "beta", "mean")}
    return {**drawn, "var": rng.uniform(0.5, 2, channels).astype("float32")}


def images(seed: int = 0, channels: int = 6) -> Tensor:
    return torch.randn(4, channels, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def normalized(x: Tensor, given: dict[str, np.ndarray], eps: float) -> Tensor:
    """The formula of batch norm in evaluation, float64, (N, C, *)."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    wide = {name: torch.from_numpy(array).double().view(shape) for name, array in given.items()}
    return (x.double() - wide["mean"]) / (wide["var"] + eps).sqrt() * wide["gamma"] + wide["beta"]


def portrait(model: nn.Module) -> dict[str, Any]:
    """What a failed load must leave alone: tensors by identity and value, eps, momentum, gradients wanted."""
    found: dict[str, Any] = {
        name: (id(tensor), tensor.clone(), tensor.requires_grad)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    found |= {
        f"{name}.{key}": getattr(module, key, None)
        for name, module in model.named_modules()
        for key in ("eps", "momentum")
    }
    return found


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        if isinstance(value, tuple):
            assert value[0] == after[key][0], key
            assert torch.equal(value[1], after[key][1]), key
            assert value[2] == after[key][2], key
        else:
            assert value == after[key], key
