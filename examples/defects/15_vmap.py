"""Gradients of each of several batches by torch.func: torch's batch norm cannot move its statistics and raises."""

import torch
from torch import Tensor

import normkit as nk

TITLE = "vmap(grad) over a training batch norm"
MEASURES = "running_mean of BatchNorm1d after the gradients of 5 batches of mean 5 at once, momentum 0.1"
THREADS = ("85533",)
TOLERANCE = 1e-6  # one float32 rounding of a value near 0.5


def data() -> Tensor:
    return torch.randn(5, 16, 1, generator=torch.Generator().manual_seed(0)) + 5


def truth() -> float:
    return 0.1 * data().double().mean().item()  # the five batches are one update


def with_torch() -> float:
    return _gradients(torch.nn.BatchNorm1d(1))


def with_normkit() -> float:
    return _gradients(nk.BatchNorm1d(1))


def _gradients(layer: torch.nn.BatchNorm1d) -> float:
    def loss(x: Tensor) -> Tensor:
        return (layer(x) ** 3).sum()

    torch.func.vmap(torch.func.grad(loss))(data())
    assert layer.running_mean is not None
    return layer.running_mean.item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
