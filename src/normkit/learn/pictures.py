"""The reader's own images for the section of feature maps, out of a .npz that anybody may have made."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from ..studies import archive

COUNT, SIZE = 6, 14
LARGEST = 1 << 24  # numbers: what this page shows is six small pictures


def pictures(path: Path) -> Tensor:
    """The first six `images` (N, H, W) or (N, H, W, C) of a .npz as (6, 14, 14) float64 from 0 to 1.

    Raises:
        UsageError: no such file, not such an array, fewer than six images, smaller than 14x14, NaN, or all the same.
    """
    try:
        with archive.opened(path) as zipped:
            header = archive.header(zipped, "images")
            shape = header.shape
            if len(shape) not in (3, 4) or shape[0] < COUNT or min(shape[1:3]) < SIZE or 0 in shape:
                raise ValueError(
                    f"expected at least {COUNT} images (N, H, W) or (N, H, W, C) of {SIZE}x{SIZE} or more, got {shape}"
                )
            if header.bytes > 8 * LARGEST:
                raise ValueError(f"expected at most {LARGEST:,} numbers, got {shape}")
            values = archive.read(zipped, "images", header)
    except archive.ERRORS as error:
        reason = f"no array is called {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"cannot read `images` from {path}: {reason}") from None
    x = torch.tensor(values[:COUNT].astype("float64"))
    if not bool(x.isfinite().all()) or x.amin() == x.amax():
        raise UsageError(f"{path} must hold finite images that are not all the same")
    grey = x if x.dim() == 3 else x.mean(3)
    small = torch.nn.functional.adaptive_avg_pool2d(grey[:, None], SIZE)[:, 0]
    low, high = small.amin(), small.amax()
    return (small - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
