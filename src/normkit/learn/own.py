"""The reader's own numbers out of a .npz that anybody may have made: `images` for the maps, `values` for test time.

Rules: either or both; what is wrong is a UsageError of one line; nothing is opened that is no plain array of numbers.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import torch
from torch import Tensor

from ..errors import UsageError
from ..studies import archive

if TYPE_CHECKING:
    import numpy as np

COUNT, SIZE = 6, 14
LARGEST = 1 << 24  # numbers of an array: what this page shows is six small pictures
FEWEST, MOST = 16, 12_800  # values: two batches of 8; what 200 batches of 64 hold


@dataclass(frozen=True)
class Own:
    """images: (6, 14, 14) float64 from 0 to 1; values: (k,) float64 with 16 <= k <= 12,800."""

    images: Tensor | None = None
    values: Tensor | None = None


def read(source: Path | bytes) -> Own:
    """What a .npz holds for the page, from its file or from its bytes.

    Raises:
        UsageError: no such file, no .npz, neither `images` nor `values`, or an array of them that does not fit.
    """
    name = str(source) if isinstance(source, Path) else "the file"
    try:
        with _opened(source) as zipped:
            there = {entry.removesuffix(".npy") for entry in zipped.namelist()}
            if not there & {"images", "values"}:
                raise ValueError("expected an array called images or values: np.savez(path, images=..., values=...)")
            return Own(_pictures(zipped) if "images" in there else None, _values(zipped) if "values" in there else None)
    except archive.ERRORS as error:
        raise UsageError(f"cannot use {name}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _opened(source: Path | bytes) -> AbstractContextManager[ZipFile]:
    return archive.opened(source) if isinstance(source, Path) else archive.unpacked(io.BytesIO(source))


def _array(zipped: ZipFile, name: str) -> tuple[archive.Header, np.ndarray[Any, Any]]:
    header = archive.header(zipped, name)
    if header.bytes > 8 * LARGEST:
        raise ValueError(f"expected at most {LARGEST:,} numbers in {name}, got {header.shape}")
    return header, archive.read(zipped, name, header)


def _pictures(zipped: ZipFile) -> Tensor:
    """The first six images (N, H, W) or (N, H, W, C), grey, 14x14."""
    shape = archive.header(zipped, "images").shape
    if len(shape) not in (3, 4) or shape[0] < COUNT or min(shape[1:3]) < SIZE or 0 in shape:
        raise ValueError(
            f"expected at least {COUNT} images (N, H, W) or (N, H, W, C) of {SIZE}x{SIZE} or more, got {shape}"
        )
    _, array = _array(zipped, "images")
    x = _finite(array[:COUNT], "images")
    grey = x if x.dim() == 3 else x.mean(3)
    small = torch.nn.functional.adaptive_avg_pool2d(grey[:, None], SIZE)[:, 0]
    low, high = small.amin(), small.amax()
    return (small - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)


def _values(zipped: ZipFile) -> Tensor:
    """All values in their order, the first 12,800 of them."""
    header, array = _array(zipped, "values")
    if array.size < FEWEST:
        raise ValueError(f"expected at least {FEWEST} values, got {header.shape}")
    return _finite(array.reshape(-1)[:MOST], "values")


def _finite(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """As float64. ValueError: not finite, above 1e100 (its square would be no number), or all the same."""
    x = torch.tensor(array.astype("float64"))
    if not bool((x.abs() <= 1e100).all()) or x.amin() == x.amax():
        raise ValueError(f"{name} must hold finite numbers of size 1e100 at most that are not all the same")
    return x
