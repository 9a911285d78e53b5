"""Squares of values around 1e30 overflow float32: torch's variance is infinite and every output zero."""

import torch

import normkit as nk

TITLE = "Values around 10³⁰"
MEASURES = "standard deviation of the output of BatchNorm1d for 256 normal values times 1e30"
THREADS = ("162489", "178123")
TOLERANCE = 1e-6  # outputs right to 8 ulp; their deviation is better than that


def data() -> torch.Tensor:
    return torch.randn(256, 1, generator=torch.Generator().manual_seed(0)) * 1e30


def truth() -> float:
    x = data().double()
    return ((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()).std(correction=0).item()


def with_torch() -> float:
    return torch.nn.BatchNorm1d(1)(data()).double().std(correction=0).item()


def with_normkit() -> float:
    return nk.BatchNorm1d(1)(data()).double().std(correction=0).item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
