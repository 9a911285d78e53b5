"""A longer sequence in the batch adds padding to all others, and with torch that changes what they are turned into."""

import torch

import normkit as nk

TITLE = "A neighbour's padding"
MEASURES = "how far the outputs of 7 sequences move when the padded length of their batch grows from 40 to 400"
THREADS = ("70529", "25910")
TOLERANCE = 1e-6  # the same real values: at most another order of summation
MISSING = True  # torch has no such request: its number is what a user gets without

LENGTHS = torch.arange(10, 45, 5)


def data(length: int) -> torch.Tensor:
    x = torch.randn(7, 1, 40, generator=torch.Generator().manual_seed(0)) + 3
    return torch.nn.functional.pad(x * nk.mask_from_lengths(LENGTHS, 40).unsqueeze(1), (0, length - 40))


def truth() -> float:
    return 0.0


def with_torch() -> float:
    short, long = (torch.nn.BatchNorm1d(1)(data(length))[..., :40] for length in (40, 400))
    return _largest(long - short)


def with_normkit() -> float:
    short, long = (
        nk.BatchNorm1d(1)(data(length), mask=nk.mask_from_lengths(LENGTHS, length))[..., :40] for length in (40, 400)
    )
    return _largest(long - short)


def _largest(difference: torch.Tensor) -> float:
    real = nk.mask_from_lengths(LENGTHS, 40).unsqueeze(1)
    return difference[real].abs().max().item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
