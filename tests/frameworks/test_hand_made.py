"""Haiku, Paddle, MXNet and names of TensorFlow: states made by hand in the layout that docs/frameworks.md gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk
from tests.frameworks.nets import Net, arrays, images, normalized


def assert_evaluates(model: nn.Module, name: str, given: dict[str, np.ndarray], eps: float) -> None:
    x = images()
    layer = model.eval().get_submodule(name)
    torch.testing.assert_close(layer(x).double(), normalized(x, given, eps), rtol=1e-5, atol=1e-5)


# --- Haiku


def haiku_of(name: str, seed: int, decay: float = 0.9, steps: int = 3) -> tuple[dict[str, Any], dict[str, Any]]:
    """As hk.BatchNorm leaves it after some steps on channels_last images: (1, 1, 1, C), hidden begins at zero."""
    a = {key: value.reshape(1, 1, 1, -1) for key, value in arrays(seed).items()}

    def averages(value: np.ndarray) -> dict[str, Any]:
        return {"average": value, "hidden": value * (1 - decay**steps), "counter": np.int32(steps)}

    params = {name: {"scale": a["gamma"], "offset": a["beta"]}, "conv": {"w": np.ones((3, 3, 6, 6))}}
    return params, {f"{name}/~/mean_ema": averages(a["mean"]), f"{name}/~/var_ema": averages(a["var"])}


def test_haiku_evaluates_by_the_averages_and_counts() -> None:
    model = Net()
    report = nk.load_norm_state(model, haiku_of("net/~/bn1", 1), "haiku", names={"bn1": "net/~/bn1"})
    assert_evaluates(model, "bn1", arrays(1), 1e-5)
    assert int(model.bn1.num_batches_tracked) == 3
    assert model.bn1.momentum == 0.1  # decay_rate has no default, and no state says it
    assert "the average, not the hidden sum that begins at 0" in report["bn1"].converted


def test_haikus_pair_may_come_as_one_mapping_and_its_decay_from_the_caller() -> None:
    params, state = haiku_of("bn1", 1)
    model = Net()
    nk.load_norm_state(model, {"params": params, "state": state}, "haiku", momentum=0.99)
    assert_evaluates(model, "bn1", arrays(1), 1e-5)
    assert model.bn1.momentum == pytest.approx(0.01)


def test_haikus_layer_norm_has_no_state() -> None:
    a, model = arrays(2), Net()
    report = nk.load_norm_state(model, ({"ln": {"scale": a["gamma"], "offset": a["beta"]}}, {}), "haiku")
    assert torch.equal(model.ln.weight, torch.from_numpy(a["gamma"]))
    assert report["ln"].what == ("weight", "bias")


# --- Flax's flat names


@pytest.mark.parametrize("separator", ["/", None])
def test_flax_variables_that_were_flattened(separator: str | None) -> None:
    a, model = arrays(1), Net()
    keys = {("params", "scale"): "gamma", ("params", "bias"): "beta", ("batch_stats", "mean"): "mean"}
    state = {
        (collection, "bn1", name): a[mine]
        for (collection, name), mine in {**keys, ("batch_stats", "var"): "var"}.items()
    }
    state[("opt_state", "bn1", "scale")] = a["mean"]  # an optimizer's, which is no norm
    flat: Any = state if separator is None else {separator.join(key): value for key, value in state.items()}
    report = nk.load_norm_state(model, flat, "flax")
    assert_evaluates(model, "bn1", a, 1e-5)
    assert report.unused == ()


# --- Paddle


@pytest.mark.parametrize("static", [False, True])
def test_paddle(static: bool) -> None:
    a, model = arrays(1), Net()
    keys = (
        ("bn1.w_0", "bn1.b_0", "bn1.w_1", "bn1.w_2")
        if static
        else ("bn1.weight", "bn1.bias", "bn1._mean", "bn1._variance")
    )
    state: dict[str, Any] = dict(zip(keys, (a["gamma"], a["beta"], a["mean"], a["var"]), strict=True))
    state |= {"conv.weight": np.ones((6, 6, 3, 3)), "StructuredToParameterName@@": {"bn1.weight": "batch_norm2d_0.w_0"}}
    nk.load_norm_state(model, state, "paddle")
    assert_evaluates(model, "bn1", a, 1e-5)
    assert model.bn1.momentum == pytest.approx(0.1)


def test_paddles_group_norm_is_told_by_its_name() -> None:
    a, model = arrays(1), nn.ModuleDict({"norm1": nn.GroupNorm(3, 6)})
    state = {
        "norm1.weight": a["gamma"],
        "norm1.bias": a["beta"],
        "head.weight": np.ones((6, 2)),
        "head.bias": np.ones(2),
    }
    report = nk.load_norm_state(model, state, "paddle")
    assert report.unused == ()
    assert torch.equal(model.norm1.weight, torch.from_numpy(a["gamma"]))


# --- MXNet


class NDArray:
    """What mx.nd.load gives: NumPy by asnumpy()."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape = array, array.shape

    def asnumpy(self) -> np.ndarray:
        return self._array


def symbol_of(name: str, given: dict[str, np.ndarray]) -> dict[str, Any]:
    keys = {"arg:{}_gamma": "gamma", "arg:{}_beta": "beta", "aux:{}_moving_mean": "mean", "aux:{}_moving_var": "var"}
    return {key.format(name): NDArray(given[value]) for key, value in keys.items()}


def test_glons_gamma_counts() -> None:
    a, model = arrays(1), Net()
    state = {f"bn1.{key}": NDArray(a[mine]) for key, mine in
             {"gamma": "gamma", "beta": "beta", "running_mean": "mean", "running_var": "var"}.items()}  # fmt: skip
    nk.load_norm_state(model, state, "mxnet")
    assert_evaluates(model, "bn1", a, 1e-5)


def test_a_symbols_gamma_has_to_be_explained_unless_it_is_one() -> None:
    a = arrays(1)
    with pytest.raises(ValueError, match=r"bn1 is of a symbol.*pass fix_gamma=True or fix_gamma=False"):
        nk.load_norm_state(Net(), symbol_of("bn1", a), "mxnet")
    learned, fixed, ones = Net(), Net(), Net()
    nk.load_norm_state(learned, symbol_of("bn1", a), "mxnet", fix_gamma=False)
    assert_evaluates(learned, "bn1", a, 1e-3)  # the operator's eps
    report = nk.load_norm_state(fixed, symbol_of("bn1", a), "mxnet", fix_gamma=True)
    assert_evaluates(fixed, "bn1", {**a, "gamma": np.ones(6)}, 1e-3)
    assert not fixed.bn1.weight.requires_grad
    assert "fix_gamma: gamma is 1, not the array's values" in report["bn1"].converted
    nk.load_norm_state(ones, symbol_of("bn1", {**a, "gamma": np.ones(6, "float32")}), "mxnet")
    assert ones.bn1.weight.requires_grad


# --- TensorFlow's names


@pytest.mark.parametrize("suffix", ["", ":0", "/.ATTRIBUTES/VARIABLE_VALUE"])
def test_tensorflows_variables_by_name(suffix: str) -> None:
    a, model = arrays(1), Net()
    names = {"gamma": "gamma", "beta": "beta", "moving_mean": "mean", "moving_variance": "var"}
    state = {f"bn1/{key}{suffix}": a[mine] for key, mine in names.items()}
    state |= {
        "bn1/gamma/Momentum": np.zeros(6),
        "bn1/gamma/.OPTIMIZER_SLOT/opt/m/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(6),
    }
    state |= {"conv/kernel:0": np.ones((3, 3, 6, 6)), "global_step": np.int64(3), "save_counter": b"text"}
    report = nk.load_norm_state(model, state, "tensorflow")
    assert_evaluates(model, "bn1", a, 1e-3)
    assert report.unused == ()
