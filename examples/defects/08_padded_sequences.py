"""A batch of padded sequences has values that are not there; torch counts them, since no norm of it takes a mask."""

import torch

import normkit as nk

TITLE = "Padded sequences"
MEASURES = "running_var of BatchNorm1d after 8 sequences of 5 to 40 values, mean 3, padded with zeros, momentum 1"
THREADS = ("70529", "81985", "30414")
TOLERANCE = 1e-5  # a variance near 1 in float32
MISSING = True  # torch has no such request: its number is what a user gets without

LENGTHS = torch.arange(5, 45, 5)


def data() -> torch.Tensor:
    x = torch.randn(8, 1, 40, generator=torch.Generator().manual_seed(0)) + 3
    return x * nk.mask_from_lengths(LENGTHS, 40).unsqueeze(1)


def truth() -> float:
    return torch.cat([x[0, :n] for x, n in zip(data(), LENGTHS, strict=True)]).double().var().item()


def with_torch() -> float:
    layer = torch.nn.BatchNorm1d(1, momentum=1.0)
    layer(data())
    assert layer.running_var is not None
    return layer.running_var.item()


def with_normkit() -> float:
    layer = nk.BatchNorm1d(1, momentum=1.0)
    layer(data(), mask=nk.mask_from_lengths(LENGTHS, 40))
    assert layer.running_var is not None
    return layer.running_var.item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
