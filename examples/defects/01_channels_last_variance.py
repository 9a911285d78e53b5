"""torch's channels_last batch norm on CPU sums in float32: at a mean of 1000 the running variance loses its meaning."""

import torch

import normkit as nk

TITLE = "Variance of channels_last data with mean 1000 and deviation 1"
MEASURES = "running_var of BatchNorm2d after one batch of 16x8x256x256, momentum 1"
THREADS = ()
TOLERANCE = 5e-6  # 40 ulp of float32 at 1: a variance good to 5e-7, and the rounding of the running average around it


def data() -> torch.Tensor:
    x = torch.randn(16, 8, 256, 256, generator=torch.Generator().manual_seed(0)) + 1000
    return x.contiguous(memory_format=torch.channels_last)


def truth() -> float:
    return data()[:, 0].double().var().item()


def with_torch() -> float:
    return _running_var(torch.nn.BatchNorm2d(8, momentum=1.0))


def with_normkit() -> float:
    return _running_var(nk.BatchNorm2d(8, momentum=1.0))


def _running_var(layer: torch.nn.BatchNorm2d) -> float:
    layer(data())
    assert layer.running_var is not None
    return layer.running_var[0].item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
