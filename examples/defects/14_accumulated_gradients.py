"""Micro-batches of one step move torch's statistics once each, and what lies between them is never counted."""

import torch

import normkit as nk

TITLE = "Gradient accumulation"
MEASURES = "running_var of BatchNorm1d after one step of 8 micro-batches of 4 that differ in mean, momentum 1"
THREADS = ("46516",)
TOLERANCE = 2e-5  # a variance near 30 in float32
MISSING = True  # torch has no such request: its number is what a user gets without


def micro_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 1, generator=generator) + 2 * i for i in range(8)]


def truth() -> float:
    return torch.cat(micro_batches()).double().var().item()


def with_torch() -> float:
    layer = torch.nn.BatchNorm1d(1, momentum=1.0)
    for batch in micro_batches():
        layer(batch)
    assert layer.running_var is not None
    return layer.running_var.item()


def with_normkit() -> float:
    layer = nk.BatchNorm1d(1, momentum=1.0)
    with nk.deferred_statistics(layer):
        for batch in micro_batches():
            layer(batch)
    assert layer.running_var is not None
    return layer.running_var.item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
