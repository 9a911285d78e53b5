"""Caffe: three blobs and a Scale, from a file made by hand, and from the blobs of a net in memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk
from tests.frameworks import caffe_file as cf
from tests.frameworks.nets import Net, arrays, assert_same, images, normalized, portrait

FACTOR = 999.982


def norm_blobs(seed: int, **options: Any) -> list[bytes]:
    """Mean and variance as Caffe keeps them: times the factor."""
    a = arrays(seed)
    return [
        cf.blob(a["mean"] * FACTOR, **options),
        cf.blob(a["var"] * FACTOR, **options),
        cf.blob(np.array([FACTOR]), **options),
    ]


def scale_blobs(seed: int, **options: Any) -> list[bytes]:
    a = arrays(seed)
    return [cf.blob(a["gamma"], **options), cf.blob(a["beta"], **options)]


def two_norms(path: Path, **options: Any) -> Path:
    """conv1 -> bn1 -> its Scale, in place, then a norm of its own blob and a Scale after a ReLU, which is another's."""
    return cf.write(
        path,
        [
            cf.layer("conv1", "Convolution", ["data"], ["conv1"], [cf.blob(np.ones((6, 3, 3, 3)))]),
            cf.layer(
                "bn1", "BatchNorm", ["conv1"], ["conv1"], norm_blobs(1, **options), cf.batch_norm_param(2e-5, 0.95)
            ),
            cf.layer("scale1", "Scale", ["conv1"], ["conv1"], scale_blobs(1, **options)),
            cf.layer("bn2", "BatchNorm", ["conv1"], ["bn2"], norm_blobs(2, **options)),
            cf.layer("relu", "ReLU", ["bn2"], ["bn2"]),
            cf.layer("scale2", "Scale", ["bn2"], ["bn2"], scale_blobs(2, **options)),
        ],
    )


@pytest.mark.parametrize("options", [{}, {"legacy": True}, {"double": True}, {"packed": False}], ids=str)
def test_a_file_gives_mean_and_variance_over_the_factor_and_the_scale_after_it(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    model, x = Net(), images()
    report = nk.load_norm_state(model, two_norms(tmp_path / "net.caffemodel", **options), "caffe")
    expected = normalized(x, arrays(1), 2e-5)
    torch.testing.assert_close(model.eval().bn1(x).double(), expected, rtol=1e-4, atol=1e-4)
    assert (model.bn1.eps, model.bn1.momentum) == (pytest.approx(2e-5), pytest.approx(0.05))
    assert "gamma and beta from scale1" in report["bn1"].converted
    assert "divided by the factor 999.982" in report["bn1"].converted
    # between bn2 and scale2 lies a ReLU: that gamma is no part of the norm
    plain = {**arrays(2), "gamma": np.ones(6), "beta": np.zeros(6)}
    torch.testing.assert_close(model.bn2(x).double(), normalized(x, plain, 1e-5), rtol=1e-4, atol=1e-4)
    assert (model.bn2.eps, model.bn2.momentum) == (1e-5, pytest.approx(0.001))
    assert "no Scale follows" in report["bn2"].converted
    assert not model.bn2.weight.requires_grad


def test_names_may_say_which_scale_belongs_to_which_norm(tmp_path: Path) -> None:
    model, x = Net(), images()
    path = two_norms(tmp_path / "net.caffemodel")
    nk.load_norm_state(model, str(path), "caffe", names={"bn2": ("bn2", "scale2")})
    torch.testing.assert_close(model.eval().bn2(x).double(), normalized(x, arrays(2), 1e-5), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="a pair \\(norm, its scale\\)"):
        nk.load_norm_state(model, str(path), "caffe", names={"bn2": ("bn2", "a", "b")})


@pytest.mark.parametrize("in_a_file", [True, False])
def test_a_scale_that_is_not_there_is_said(tmp_path: Path, in_a_file: bool) -> None:
    state = two_norms(tmp_path / "net.caffemodel") if in_a_file else in_memory(1)
    with pytest.raises(ValueError, match="there is no layer 'scale9', which is said to be the Scale of 'bn1'"):
        nk.load_norm_state(Net(), state, "caffe", names={"bn1": ("bn1", "scale9")})


def test_a_norm_that_saw_no_batch_has_the_factor_0_and_zeros(tmp_path: Path) -> None:
    blobs = [cf.blob(np.zeros(6)), cf.blob(np.zeros(6)), cf.blob(np.zeros(1))]
    path = cf.write(tmp_path / "net.caffemodel", [cf.layer("bn1", "BatchNorm", ["x"], ["y"], blobs)])
    model = Net()
    report = nk.load_norm_state(model, path, "caffe")
    assert torch.equal(model.bn1.running_var, torch.zeros(6))
    assert "the factor is 0: no batch was seen, and Caffe takes 0" in report["bn1"].converted


def in_memory(seed: int) -> dict[str, list[Any]]:
    """As net.params: blobs have the array as `data`."""
    a = arrays(seed)
    return {
        "conv1": [SimpleNamespace(data=np.ones((6, 3, 3, 3)))],
        "bn1": [
            SimpleNamespace(data=a["mean"] * 2),
            SimpleNamespace(data=a["var"] * 2),
            SimpleNamespace(data=np.array([2.0])),
        ],
        "scale1": [SimpleNamespace(data=a["gamma"]), SimpleNamespace(data=a["beta"])],
    }


def test_the_blobs_of_a_net_in_memory() -> None:
    model, x = Net(), images()
    nk.load_norm_state(model, in_memory(1), "caffe")
    torch.testing.assert_close(model.eval().bn1(x).double(), normalized(x, arrays(1), 1e-5), rtol=1e-5, atol=1e-5)


def test_the_slopes_of_a_prelu_are_no_gamma() -> None:
    state = in_memory(1)
    state["prelu1"] = state.pop("scale1")[:1]
    model = Net()
    assert "no Scale follows" in nk.load_norm_state(model, state, "caffe")["bn1"].converted
    assert torch.equal(model.bn1.weight, torch.ones(6))


def test_five_blobs_hold_gamma_and_beta_too() -> None:
    a = arrays(1)
    state = {"bn1": [a["mean"] * 2, a["var"] * 2, np.array([2.0]), a["gamma"], a["beta"]]}
    model, x = Net(), images()
    nk.load_norm_state(model, state, "caffe")
    torch.testing.assert_close(model.eval().bn1(x).double(), normalized(x, a, 1e-5), rtol=1e-5, atol=1e-5)


def damaged(kind: str) -> bytes:
    whole = cf.layer("bn1", "BatchNorm", ["x"], ["y"], norm_blobs(1))
    return {
        "empty": b"",
        "text": b'name: "net" layer { type: "BatchNorm" }',
        "truncated": whole[:-7],
        "no_layers": cf.field(1, b"net"),
        "first_format": cf.field(2, b""),
        "endless": b"\xff" * 64,
        "two_blobs": cf.layer("bn1", "BatchNorm", ["x"], ["y"], norm_blobs(1)[:2]),
        "half_a_float": cf.layer("bn1", "BatchNorm", ["x"], ["y"], [cf.field(5, b"abc")] * 3),
        "eps_as_text": cf.layer("bn1", "BatchNorm", ["x"], ["y"], norm_blobs(1), cf.field(139, cf.field(3, b"1e-5"))),
        "length_beyond": cf.varint(100 << 3 | 2) + cf.varint(1 << 60),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["empty", "text", "truncated", "no_layers", "first_format", "endless", "two_blobs", "half_a_float", "eps_as_text",
     "length_beyond"],
)  # fmt: skip
def test_a_damaged_file_is_one_clear_error_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "net.caffemodel"
    path.write_bytes(damaged(kind))
    model = Net()
    before = portrait(model)
    with pytest.raises(ValueError, match=r"net\.caffemodel is no \.caffemodel that can be read"):
        nk.load_norm_state(model, path, "caffe")
    assert_same(before, portrait(model))


def test_every_truncation_of_a_file_is_an_error_or_lacks_the_last_layers(tmp_path: Path) -> None:
    path = two_norms(tmp_path / "net.caffemodel")
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            report = nk.load_norm_state(Net(), path, "caffe")
        except ValueError:
            continue
        assert len(report) <= 2


def test_a_missing_file_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        nk.load_norm_state(nn.BatchNorm2d(6), tmp_path / "nowhere.caffemodel", "caffe")
