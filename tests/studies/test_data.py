"""The data sets are real, split without overlap, and a user's own is read or refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch

from normkit.errors import UsageError
from normkit.studies import data


def test_digits_are_standardized_and_split() -> None:
    images = data.load("digits")
    assert images.train_x.shape == (1437, 1, 8, 8)
    assert images.test_x.shape == (360, 1, 8, 8)
    assert images.classes == 10
    assert images.train_x.mean().abs() < 1e-5
    assert abs(images.train_x.std() - 1) < 1e-5


def test_no_test_image_is_a_training_image() -> None:
    images = data.load("mnist5k")
    train = {image.numpy().tobytes() for image in images.train_x}
    shared = sum(image.numpy().tobytes() in train for image in images.test_x)
    assert len(images.train_y) + len(images.test_y) == 5000
    assert shared == 0


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_a_seed_draws_a_fresh_split_without_overlap(name: str) -> None:
    one, same, other = data.load(name, 3), data.load(name, 3), data.load(name, 4)
    assert torch.equal(one.train_x, same.train_x)
    assert not torch.equal(one.test_x, other.test_x)
    parts = [{image.numpy().tobytes() for image in x} for x in (one.train_x, one.valid_x, one.test_x)]
    whole = sum(len(y) for y in (one.train_y, one.valid_y, one.test_y))
    assert [round(len(y) / whole, 2) for y in (one.train_y, one.valid_y, one.test_y)] == [0.7, 0.1, 0.2]
    assert not parts[0] & parts[2]
    assert not parts[1] & (parts[0] | parts[2])
    assert whole == len(data.load(name).train_y) + len(data.load(name).test_y)


def test_every_preset_has_the_same_data_whatever_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from normkit.studies import conduct

    monkeypatch.setattr(data, "FASHION", tmp_path)
    _, quick = conduct.prepare(True, None, None, tmp_path / "a")
    _, full = conduct.prepare(False, None, None, tmp_path / "b")
    assert quick.data == full.data == "mnist5k"


@pytest.mark.skipif(not data.FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_comes_with_its_own_split() -> None:
    images = data.load("fashion-mnist")
    assert repr(images) == "fashion-mnist: 60,000 training and 10,000 test images of 1x28x28, 10 classes"
    assert images.train_y.bincount().tolist() == [6000] * 10


def test_a_user_file_with_colours_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    colours = np.random.default_rng(0).integers(0, 256, (700, 9, 7, 3), dtype=np.uint8)
    np.savez(path, images=colours, labels=np.arange(700) % 4)
    images = data.load(str(path))
    assert images.train_x.shape == (560, 3, 9, 7)
    assert images.classes == 4
    assert torch.equal(images.train_y.bincount() + images.test_y.bincount(), torch.full((4,), 175))


GOOD = {"images": np.zeros((700, 4, 4)), "labels": np.zeros(700, dtype=int)}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"images": GOOD["images"]}, "cannot read"),
        ({**GOOD, "images": np.zeros((700, 16))}, "must hold images"),
        ({**GOOD, "labels": np.zeros(699, dtype=int)}, "must hold images"),
        ({**GOOD, "labels": np.zeros(700)}, "must hold images"),
        ({**GOOD, "labels": np.full(700, -1)}, "must hold images"),
        ({**GOOD, "images": np.full((700, 4, 4), "a")}, "numbers"),
        ({**GOOD, "images": np.full((700, 4, 4), np.nan)}, "finite"),
        (GOOD, "all the same"),
        ({key: value[:100] for key, value in GOOD.items()}, "at least 640"),
    ],
    ids=["no labels", "flat", "unequal", "float labels", "negative", "text", "NaN", "constant", "few"],
)
def test_a_user_file_that_cannot_serve_is_refused_in_one_line(tmp_path: Path, arrays: dict, text: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UsageError, match=text) as error:
        data.load(str(tmp_path / "bad.npz"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"PK not a zip", b"\x93NUMPY"], ids=["absent", "empty", "zip", "npy"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError):
        data.load(str(path))


def test_pickled_arrays_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", images=np.array([object()], dtype=object), labels=np.zeros(1, dtype=int))
    with pytest.raises(UsageError, match="cannot read"):
        data.load(str(tmp_path / "p.npz"))
