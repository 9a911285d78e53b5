"""A channel that is constant has nothing to normalize: its output is zero. In channels_last torch gives almost one."""

import torch

import normkit as nk

TITLE = "A constant channel, channels_last"
MEASURES = "largest output of BatchNorm2d for 16x8x128x128 values that are all 1000.1"
THREADS = ()
TOLERANCE = 1e-6  # a mean that is right to one rounding (6e-5) would still be divided by sqrt(eps); ours must be exact


def data(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((16, 8, 128, 128), 1000.1).to(dtype).contiguous(memory_format=torch.channels_last)


def truth() -> float:
    x = data(torch.float64)
    xhat = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    return xhat.abs().max().item()


def with_torch() -> float:
    return torch.nn.BatchNorm2d(8)(data()).abs().max().item()


def with_normkit() -> float:
    return nk.BatchNorm2d(8)(data()).abs().max().item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
