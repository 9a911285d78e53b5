"""Data for the nets: crops of photographs, digits, clips, sounds, tokens; always the same ones, nothing downloaded."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "retina", "immunohistochemistry", "hubble_deep_field")
SETTLING, BATCHES = 8, 6  # batches that statistics are made of, and others that the doctor sees


def crops(size: int, batch: int, seed: int, *, count: int = BATCHES) -> list[Tensor]:
    """`count` batches (batch, 3, size, size): crops of photographs, mean 0 and deviation 1 over all of them.

    With noise of 0.01, as a sensor has: a black border of a photograph would be padding to a norm, and rightly so.
    """
    g = torch.Generator().manual_seed(seed)
    photos, found = photographs(), []
    for _ in range(count * batch):
        photo = photos[int(torch.randint(len(photos), (), generator=g))]
        side = int(torch.randint(size, min(2 * size, min(photo.shape[1:])) + 1, (), generator=g))
        top, left = (int(torch.randint(length - side + 1, (), generator=g)) for length in photo.shape[1:])
        crop = photo[:, top : top + side, left : left + side].unsqueeze(0)
        crop = nn.functional.interpolate(crop, size=size, mode="bilinear", antialias=True)[0]
        found.append(crop.flip(2) if torch.rand((), generator=g) < 0.5 else crop)
    x = torch.stack(found)
    x = (x - 0.4) / 0.28 + 0.01 * torch.randn(x.shape, generator=g)
    return list(x.split(batch))


def clips(size: int, batch: int, seed: int, frames: int = 4) -> list[Tensor]:
    """Batches (batch, 3, frames, size, size): a window that moves over a crop."""
    wide = crops(size + frames, batch, seed)
    return [torch.stack([x[..., i : i + size, i : i + size] for i in range(frames)], 2) for x in wide]


def sounds(length: int, batch: int, seed: int, count: int = BATCHES) -> list[Tensor]:
    """Batches (batch, length): sums of harmonics with noise, each of mean 0 and deviation 1 (16 kHz)."""
    g = torch.Generator().manual_seed(seed)
    time, found = torch.arange(length) / 16000.0, []
    for _ in range(count):
        pitch = 60 * 2 ** (4 * torch.rand(batch, 1, 1, generator=g))
        harmonic = torch.arange(1, 6).view(1, 5, 1)
        phase = 6.28 * torch.rand(batch, 5, 1, generator=g)
        x = ((6.28 * pitch * harmonic * time + phase).sin() / harmonic).sum(1)
        x = x + 0.2 * torch.randn(batch, length, generator=g)
        found.append((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))
    return found


def tokens(words: int, length: int, batch: int, seed: int) -> list[Tensor]:
    """Batches (batch, length) of token numbers below `words`, the early ones more often."""
    g = torch.Generator().manual_seed(seed)
    return [(words * torch.rand(batch, length, generator=g) ** 2).long() for _ in range(BATCHES)]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """(images (N, 1, 8, 8), their labels): 1,200 of scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(data.images).float()[order].unsqueeze(1) / 8 - 0.6
    y = torch.from_numpy(data.target).long()[order]
    return x[:1200], y[:1200]


@cache
def photographs() -> list[Tensor]:
    """(3, H, W), between 0 and 1."""
    from skimage import data

    return [torch.from_numpy(getattr(data, name)().copy()).float().permute(2, 0, 1) / 255 for name in PHOTOGRAPHS]
