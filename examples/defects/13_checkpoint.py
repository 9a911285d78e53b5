"""An activation checkpoint runs the forward twice; torch's running statistics move twice a step."""

import torch
from torch.utils.checkpoint import checkpoint

import normkit as nk

TITLE = "Activation checkpointing"
MEASURES = "running_mean of BatchNorm1d after one checkpointed step on a batch of mean 5, momentum 0.1"
THREADS = ("96136", "62471")
TOLERANCE = 1e-6  # one float32 rounding of a value near 0.5


def data() -> torch.Tensor:
    return (torch.randn(64, 1, generator=torch.Generator().manual_seed(0)) + 5).requires_grad_()


def truth() -> float:
    return 0.1 * data().double().mean().item()


def with_torch() -> float:
    return _step(torch.nn.BatchNorm1d(1))


def with_normkit() -> float:
    return _step(nk.BatchNorm1d(1))


def _step(layer: torch.nn.BatchNorm1d) -> float:
    checkpoint(layer, data(), use_reentrant=False).sum().backward()
    assert layer.running_mean is not None
    return layer.running_mean.item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
