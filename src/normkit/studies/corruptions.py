"""Corruptions of test images, x: (N, C, H, W) in units of the training set's deviation, severities from 1 to 5.

Contrast and brightness are affine: just what a batch's mean and deviation undo. Noise, blur and pixelation are not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def noise(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of 0.25 to 1.25 deviations."""
    return x + 0.25 * severity * torch.randn(x.shape, generator=generator)


def contrast(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """All values drawn towards the darkest: 15 to 75 % of the contrast goes."""
    return x.amin() + (x - x.amin()) * (1 - 0.15 * severity)


def brightness(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """0.4 to 2 deviations more light."""
    return x + 0.4 * severity


def blur(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """A Gaussian of 0.5 to 2.5 pixels."""
    reach = torch.arange(-6, 7, dtype=x.dtype)
    kernel = torch.exp(-(reach**2) / (2 * (0.5 * severity) ** 2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, 1, -1)
    padded = F.pad(x, (6, 6, 6, 6), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=x.shape[1]), kernel.transpose(2, 3), groups=x.shape[1])


def pixelate(x: Tensor, severity: float, generator: torch.Generator) -> Tensor:
    """Fewer pixels: 1.5 to 3.5 of them become one, each way."""
    side = max(2, round(x.shape[-1] / (1 + 0.5 * severity)))
    return F.interpolate(F.adaptive_avg_pool2d(x, side), size=x.shape[-2:], mode="nearest")


CORRUPTIONS: dict[str, Callable[[Tensor, float, torch.Generator], Tensor]] = {
    f.__name__: f for f in (noise, contrast, brightness, blur, pixelate)
}


def corrupted(x: Tensor, name: str, severity: float, seed: int) -> Tensor:
    """x under one corruption, the same for the same seed; x itself at severity 0."""
    if severity == 0:
        return x
    generator = torch.Generator().manual_seed(1000 * seed + round(10 * severity))
    return CORRUPTIONS[name](x, severity, generator)
