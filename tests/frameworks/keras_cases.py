"""Keras: models of the real library, a little trained, on PyTorch as backend. `test_real_libraries` runs this file."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.frameworks.facts import FACTS
from tests.frameworks.nets import images

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.filterwarnings("ignore")  # what Keras warns of itself


class Twin(nn.Module):
    """What `model` below is, in PyTorch, channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3, bias=False)
        self.bn = nk.BatchNorm2d(8, activation="relu")
        self.plain = nn.BatchNorm2d(8)
        self.whole = nn.LayerNorm((8, 3, 3))
        self.groups = nn.GroupNorm(4, 8)
        self.channels = nk.LayerNorm2d(8)
        self.rms = nk.RMSNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.channels(self.groups(self.whole(self.plain(self.bn(self.conv(x))))))
        return self.rms(y.movedim(1, -1)).movedim(-1, 1)


def model() -> Any:
    layers = keras.layers
    made = keras.Sequential(
        [
            keras.Input((5, 5, 6)),
            layers.Conv2D(8, 3, use_bias=False, name="conv"),
            layers.BatchNormalization(momentum=0.9, epsilon=2e-3, name="bn"),
            layers.ReLU(),
            layers.BatchNormalization(scale=False, name="plain"),
            layers.LayerNormalization(axis=[1, 2, 3], name="whole"),
            layers.GroupNormalization(groups=4, name="groups"),
            layers.LayerNormalization(name="channels"),
            layers.RMSNormalization(name="rms"),
        ]
    )
    rng = np.random.default_rng(0)
    for variable in made.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32") * 0.3 + 0.8)
    for seed in range(5):
        made(channels_last(images(seed)), training=True)
    return made


def channels_last(x: Tensor) -> np.ndarray:
    return x.movedim(1, -1).numpy()


def twin_of(theirs: Any, state: Any, **options: Any) -> tuple[Twin, Any]:
    twin = Twin()
    with torch.no_grad():
        kernel = torch.tensor(keras.ops.convert_to_numpy(theirs.get_layer("conv").kernel))
        twin.conv.weight.copy_(kernel.permute(3, 2, 0, 1))
    return twin, nk.load_norm_state(twin, state, "keras", **options)


def output(theirs: Any, x: Tensor) -> Tensor:
    return torch.tensor(keras.ops.convert_to_numpy(theirs(channels_last(x), training=False))).movedim(-1, 1)


def test_a_model_evaluates_as_keras_does() -> None:
    theirs, x = model(), images(9)
    twin, report = twin_of(theirs, theirs)
    assert report.missing == report.unused == ()
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(x), output(theirs, x), rtol=1e-4, atol=1e-4)
    assert (report["bn"].eps, report["bn"].momentum) == (2e-3, pytest.approx(0.1))
    assert (twin.plain.eps, twin.plain.momentum) == (1e-3, pytest.approx(0.01))
    assert not twin.plain.weight.requires_grad
    assert "eps as the state says" in report["bn"].converted


def test_variables_by_name_and_eps_from_the_caller() -> None:
    theirs, x = model(), images(9)
    variables = {variable.path: keras.ops.convert_to_numpy(variable) for variable in theirs.variables}
    twin, report = twin_of(theirs, variables, eps={"bn": 2e-3}, momentum={"bn": 0.9})
    assert report.missing == report.unused == ()
    with torch.no_grad():
        torch.testing.assert_close(twin.eval()(x), output(theirs, x), rtol=1e-4, atol=1e-4)


def test_training_goes_on_alike_but_for_the_unbiased_variance() -> None:
    theirs, x = model(), images(9)
    twin, _ = twin_of(theirs, theirs)
    before = twin.bn.running_var.clone()
    theirs(channels_last(x), training=True)
    twin.train()(x)
    bn = theirs.get_layer("bn")
    mean, var = (torch.tensor(keras.ops.convert_to_numpy(v)) for v in (bn.moving_mean, bn.moving_variance))
    torch.testing.assert_close(twin.bn.running_mean, mean, rtol=1e-4, atol=1e-5)
    values = 4 * 3 * 3
    unbiased = before * 0.9 + (var - before * 0.9) * values / (values - 1)
    torch.testing.assert_close(twin.bn.running_var, unbiased, rtol=1e-4, atol=1e-5)


def test_layers_inside_of_models_have_the_path_as_name() -> None:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="bn")], name="block")
    theirs = keras.Sequential([keras.Input((4,)), inner])
    mine = nn.ModuleDict({"block": nn.ModuleDict({"bn": nn.BatchNorm1d(4)})})
    assert nk.load_norm_state(mine, theirs, "keras")["block.bn"].origin == "block/bn"


@pytest.mark.parametrize(
    ("kind", "family"),
    [("BatchNormalization", "batch"), ("LayerNormalization", "layer"), ("GroupNormalization", "group"),
     ("RMSNormalization", "rms")],
)  # fmt: skip
def test_the_defaults_of_the_table_are_the_librarys(kind: str, family: str) -> None:
    arguments = inspect.signature(getattr(keras.layers, kind)).parameters
    assert arguments["epsilon"].default == FACTS["keras"].eps[family]
    if family == "batch":
        assert arguments["momentum"].default == FACTS["keras"].keeps


def alone(layer: Any) -> Any:
    return keras.Sequential([keras.Input((5, 5, 6)), layer])


@pytest.mark.parametrize(
    ("theirs", "mine", "text"),
    [
        (lambda: keras.layers.LayerNormalization(), nn.GroupNorm(2, 6), "is a group norm, and .* a layer norm"),
        (lambda: keras.layers.LayerNormalization(), nn.InstanceNorm2d(6, affine=True), "an instance norm, and"),
        (lambda: keras.layers.LayerNormalization(center=False), nk.RMSNorm(6), "is an RMS norm, and .* a layer norm"),
        (lambda: keras.layers.RMSNormalization(), nn.LayerNorm(6), "is a layer norm, and .* an RMS norm"),
        (lambda: keras.layers.GroupNormalization(groups=3), nn.GroupNorm(2, 6), "normalizes 2 groups .* 3"),
        (lambda: keras.layers.GroupNormalization(groups=3), nn.InstanceNorm2d(6, affine=True), "normalizes 6 groups"),
        (lambda: keras.layers.LayerNormalization(rms_scaling=True), nk.RMSNorm(6), "rms_scaling=True"),
    ],
)  # fmt: skip
def test_a_norm_of_another_kind_is_refused(theirs: Any, mine: nn.Module, text: str) -> None:
    """Their arrays fit; what is computed does not."""
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    with pytest.raises(ValueError, match=text):
        nk.load_norm_state(nn.Sequential(mine), alone(theirs()), "keras")
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())


@pytest.mark.parametrize(
    "mine", [nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(6, 6)], ids=["instance norm", "group norm"]
)
def test_one_group_a_channel_is_an_instance_norm(mine: nn.Module) -> None:
    layer = keras.layers.GroupNormalization(groups=-1, epsilon=0.3)
    theirs, x = alone(layer), images(3)
    layer.gamma.assign(np.linspace(0.5, 2, 6).astype("float32"))
    nk.load_norm_state(nn.Sequential(mine), theirs, "keras")
    torch.testing.assert_close(mine.eval()(x).detach(), output(theirs, x), rtol=1e-4, atol=1e-4)


def test_a_norm_without_gamma_and_beta_gives_its_eps() -> None:
    theirs = alone(keras.layers.LayerNormalization(center=False, scale=False, epsilon=0.3))
    mine = nn.Sequential(nn.LayerNorm(6, elementwise_affine=False))
    (loaded,) = nk.load_norm_state(mine, theirs, "keras")
    assert (loaded.what, mine[0].eps) == ((), 0.3)


def test_names_may_leave_out_what_all_begin_with() -> None:
    theirs = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(name="a"), keras.layers.BatchNormalization(name="b")]
    )
    mine = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    loaded = nk.load_norm_state(mine, theirs, "keras", names={"0": "b", "1": f"{theirs.name}/a"})
    assert [layer.origin for layer in loaded] == [f"{theirs.name}/b", f"{theirs.name}/a"]
