"""torch's InstanceNorm turns a channels_last image back, so the next convolution converts it again."""

import torch

import normkit as nk

TITLE = "InstanceNorm2d of a channels_last image"
MEASURES = "distance in memory between neighbouring channels of the output of a 4x16x32x32 channels_last input"
THREADS = ("72341", "111824", "194616")
TOLERANCE = 0.0  # a stride


def truth() -> float:
    return 1.0  # as the input has it


def with_torch() -> float:
    return _stride(torch.nn.InstanceNorm2d(16))


def with_normkit() -> float:
    return _stride(nk.InstanceNorm2d(16))


def _stride(layer: torch.nn.InstanceNorm2d) -> float:
    x = torch.randn(4, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    return float(layer(x).stride(1))


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
