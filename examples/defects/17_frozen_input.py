"""Group norm behind a part that does not train: bfloat16, channels_last, and torch writes a gradient nobody wants."""

import signal
import subprocess
import sys

import torch
from torch import nn

import normkit as nk

TITLE = "Group norm of a frozen part's bfloat16 channels_last output"
MEASURES = "weight.grad of channel 0 of GroupNorm(2, 8) on a 2x8x6x6 input that wants no gradient, by the input as dy"
THREADS = ()
TOLERANCE = 0.25  # one bfloat16 rounding of a value near 70


class SegmentationFault(RuntimeError):
    """What ended the process."""


def data() -> torch.Tensor:
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    return x.contiguous(memory_format=torch.channels_last)


def truth() -> float:
    x = data().double()
    groups = x.reshape(2, 2, -1)
    var, mean = torch.var_mean(groups, -1, correction=0, keepdim=True)
    xhat = ((groups - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
    return (x * xhat)[:, 0].sum().item()


def with_torch() -> float:
    """In a process of its own, which may die."""
    program = f"import runpy; m = runpy.run_path({__file__!r}); print(m['gradient'](m['nn'].GroupNorm(2, 8)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == -signal.SIGSEGV:
        raise SegmentationFault("the process died")
    return float(done.stdout)


def with_normkit() -> float:
    return gradient(nk.GroupNorm(2, 8))


def gradient(layer: nn.GroupNorm) -> float:
    layer.bfloat16()
    (layer(data()) * data()).sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad[0].item()


if __name__ == "__main__":
    from normkit.studies.gallery import show

    show(__file__)
