"""What `nk.load_norm_state` promises whatever the framework: names, wholeness, eps and momentum, errors, the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk
from normkit.frameworks.facts import FACTS
from normkit.frameworks.report import LoadedState
from tests.frameworks.nets import Net, arrays, assert_same, images, normalized, portrait


def keras_of(name: str, seed: int) -> dict[str, np.ndarray]:
    a = arrays(seed)
    return {
        f"{name}/gamma": a["gamma"],
        f"{name}/beta": a["beta"],
        f"{name}/moving_mean": a["mean"],
        f"{name}/moving_variance": a["var"],
    }


def test_equal_names_go_together_and_the_rest_is_named_on_either_side() -> None:
    model = Net()
    report = nk.load_norm_state(model, {**keras_of("bn1", 1), **keras_of("stem", 2)}, "keras")
    assert [layer.name for layer in report] == ["bn1"]
    assert report.unused == ("stem",)
    assert dict(report.missing) == dict.fromkeys(("bn2", "gn", "ln"), "no norm of the state is for it")
    x = images()
    torch.testing.assert_close(model.eval().bn1(x).double(), normalized(x, arrays(1), 1e-3), rtol=1e-5, atol=1e-5)


def test_names_say_what_belongs_together_the_others_go_by_their_names() -> None:
    model = Net()
    state = {**keras_of("stem", 1), **keras_of("bn2", 2)}
    report = nk.load_norm_state(model, state, "keras", names={"bn1": "stem"})
    assert {layer.name: layer.origin for layer in report} == {"bn1": "stem", "bn2": "bn2"}
    assert torch.equal(model.bn1.running_mean, torch.from_numpy(arrays(1)["mean"]))
    assert torch.equal(model.bn2.running_mean, torch.from_numpy(arrays(2)["mean"]))


def test_slashes_are_dots() -> None:
    model = nn.Sequential()
    model.add_module("block", nn.Sequential())
    model.block.add_module("bn", nn.BatchNorm2d(6))
    report = nk.load_norm_state(model, keras_of("block/bn", 1), "keras")
    assert report["block.bn"].origin == "block/bn"


def test_what_all_names_of_the_state_begin_with_may_be_the_models_name() -> None:
    state = {**keras_of("sequential_3/bn1", 1), **keras_of("sequential_3/bn2", 2)}
    report = nk.load_norm_state(Net(), state, "keras")
    assert {layer.name: layer.origin for layer in report} == {"bn1": "sequential_3/bn1", "bn2": "sequential_3/bn2"}
    other = {**keras_of("a/bn1", 1), **keras_of("b/bn2", 2)}  # nothing that they share
    with pytest.raises(ValueError, match="no norm of the state is called as one of the model"):
        nk.load_norm_state(Net(), other, "keras")


def test_a_whole_name_goes_before_one_without_what_all_begin_with() -> None:
    state = {**keras_of("m/bn", 1), **keras_of("m/m/bn", 2)}
    report = nk.load_norm_state(Net(), state, "keras", names={"bn1": "m.bn", "bn2": "m.m.bn"})
    assert {layer.name: layer.origin for layer in report} == {"bn1": "m/bn", "bn2": "m/m/bn"}


def test_one_norm_on_each_side_needs_no_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    assert nk.load_norm_state(model, keras_of("anything", 1), "keras")["1"].origin == "anything"


def test_the_order_counts_only_on_request() -> None:
    state = {**keras_of("a", 1), **keras_of("b", 2)}
    model = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match=r"the model has 0, 1; the state has a \(6,\), b \(6,\).*names='order'"):
        nk.load_norm_state(model, state, "keras")
    report = nk.load_norm_state(model, state, "keras", names="order")
    assert {layer.name: layer.origin for layer in report} == {"0": "a", "1": "b"}
    with pytest.raises(ValueError, match="as many norms on both sides; the model has 4 "):
        nk.load_norm_state(Net(), state, "keras", names="order")


def test_a_shared_layer_goes_by_any_of_its_names() -> None:
    shared = nn.BatchNorm2d(6)
    model = nn.ModuleDict({"first": shared, "second": shared})
    report = nk.load_norm_state(model, keras_of("second", 1), "keras")
    assert [layer.name for layer in report] == ["first"]


def test_parameters_buffers_and_modes_stay_the_same_objects() -> None:
    model = Net()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    buffers = {name: id(b) for name, b in model.named_buffers()}
    model.bn1.weight.grad = torch.ones(6)
    model.bn1.eval()
    nk.load_norm_state(model, keras_of("bn1", 1), "keras")
    assert parameters == {name: id(p) for name, p in model.named_parameters()}
    assert buffers == {name: id(b) for name, b in model.named_buffers()}
    assert not model.bn1.training
    assert model.bn2.training
    assert torch.equal(model.bn1.weight.grad, torch.ones(6))


# --- eps and momentum


def test_the_frameworks_eps_and_momentum_are_set_on_the_layer_and_said() -> None:
    model = Net()
    layer = nk.load_norm_state(model, keras_of("bn1", 1), "keras")["bn1"]
    assert (model.bn1.eps, model.bn1.momentum) == (1e-3, 0.01)
    assert (layer.eps, layer.momentum) == (1e-3, 0.01)
    assert "eps Keras's default, as the state does not say" in layer.converted


def test_what_the_caller_says_comes_first_in_the_frameworks_convention() -> None:
    model = Net()
    state = {**keras_of("bn1", 1), **keras_of("bn2", 2)}
    nk.load_norm_state(model, state, "keras", eps={"bn1": 1.001e-5}, momentum=0.997)
    assert (model.bn1.eps, model.bn2.eps) == (1.001e-5, 1e-3)
    assert model.bn1.momentum == model.bn2.momentum == pytest.approx(0.003)


def test_an_eps_of_the_layers_own_that_is_not_the_frameworks_has_to_be_said() -> None:
    model = Net(eps=1.001e-5)
    before = portrait(model)
    with pytest.raises(ValueError, match=r"bn1 \(BatchNorm2d\) has eps=1.001e-05, Keras's default is 0.001.*pass eps="):
        nk.load_norm_state(model, keras_of("bn1", 1), "keras")
    assert_same(before, portrait(model))
    nk.load_norm_state(model, keras_of("bn1", 1), "keras", eps=1.001e-5)
    assert model.bn1.eps == 1.001e-5


def test_numbers_beside_a_layers_arrays_are_its_eps_and_momentum() -> None:
    a, model = arrays(1), Net()
    own = {"gamma": a["gamma"], "beta": a["beta"], "moving_mean": a["mean"], "moving_variance": a["var"]}
    nk.load_norm_state(model, {"bn1": {**own, "epsilon": 5e-4, "momentum": 0.8}}, "keras")
    assert (model.bn1.eps, model.bn1.momentum) == (5e-4, pytest.approx(0.2))


def test_momentum_none_is_kept() -> None:
    model = Net(momentum=None)
    layer = nk.load_norm_state(model, keras_of("bn1", 1), "keras")["bn1"]
    assert model.bn1.momentum is None
    assert layer.momentum is None


def test_momentum_moves_the_mean_as_the_framework_does() -> None:
    model, x = Net(), images()
    nk.load_norm_state(model, keras_of("bn1", 1), "keras", momentum=0.9)
    model.bn1.train()(x)
    old, new = torch.from_numpy(arrays(1)["mean"]), x.mean((0, 2, 3))
    torch.testing.assert_close(model.bn1.running_mean, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-6)


# --- the variance


def test_a_biased_variance_stays_so_and_is_made_unbiased_on_request() -> None:
    state, model = keras_of("bn1", 1), Net()
    var = torch.from_numpy(arrays(1)["var"])
    assert "running_var biased, as it was" in nk.load_norm_state(model, state, "keras")["bn1"].converted
    assert torch.equal(model.bn1.running_var, var)
    layer = nk.load_norm_state(model, state, "keras", values={"bn1": 100})["bn1"]
    torch.testing.assert_close(model.bn1.running_var, var * 100 / 99, rtol=1e-6, atol=0)
    assert "running_var unbiased: times 100 / 99" in layer.converted


def test_tensorflows_fused_kernel_kept_an_unbiased_variance_of_images_only() -> None:
    flat = nn.Sequential(nn.BatchNorm1d(6))
    var = torch.from_numpy(arrays(1)["var"])
    nk.load_norm_state(flat, keras_of("0", 1), "tensorflow", values=50)
    torch.testing.assert_close(flat[0].running_var, var * 50 / 49, rtol=1e-6, atol=0)
    model = Net()
    layer = nk.load_norm_state(model, keras_of("bn1", 1), "tensorflow", values=50)["bn1"]
    assert torch.equal(model.bn1.running_var, var)
    assert "running_var unbiased, as it was" in layer.converted


def test_caffes_variance_takes_no_values() -> None:
    blobs = {"bn": [np.zeros(6), np.ones(6), np.ones(1)]}
    with pytest.raises(ValueError, match="Caffe's running variance is unbiased already: leave values= out"):
        nk.load_norm_state(Net(), blobs, "caffe", values=8)
    with pytest.raises(ValueError, match="2 or more, got 1"):
        nk.load_norm_state(Net(), keras_of("bn1", 1), "keras", values=1)


# --- gamma and beta that are not there


def test_no_gamma_is_one_and_learns_nothing() -> None:
    model, a = Net(), arrays(1)
    state = {"bn1/beta": a["beta"], "bn1/moving_mean": a["mean"], "bn1/moving_variance": a["var"]}
    layer = nk.load_norm_state(model, state, "keras")["bn1"]
    assert torch.equal(model.bn1.weight, torch.ones(6))
    assert not model.bn1.weight.requires_grad
    assert model.bn1.bias.requires_grad
    assert "weight fixed at 1: it takes no gradient" in layer.converted


def test_a_layer_without_weight_takes_a_gamma_of_ones_only() -> None:
    model, a = Net(affine=False), arrays(1)
    with pytest.raises(ValueError, match=r"bn1 .* has no weight, and bn1 has one that does something"):
        nk.load_norm_state(model, keras_of("bn1", 1), "keras")
    ones = {**keras_of("bn1", 1), "bn1/gamma": np.ones(6), "bn1/beta": np.zeros(6)}
    nk.load_norm_state(model, ones, "keras")
    assert torch.equal(model.bn1.running_var, torch.from_numpy(a["var"]))


# --- wholeness and errors


def test_nothing_is_loaded_where_one_layer_does_not_fit() -> None:
    model = Net()
    before = portrait(model)
    state = {**keras_of("bn1", 1), **{key: value[:5] for key, value in keras_of("bn2", 2).items()}}
    with pytest.raises(
        ValueError, match=r"bn2 \(BatchNorm2d\) has weight of shape \(6,\), and bn2 has \(5,\); nothing"
    ):
        nk.load_norm_state(model, state, "keras")
    assert_same(before, portrait(model))


def test_an_interrupt_while_it_is_written_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from normkit.frameworks.written import Planned

    model = Net()
    before = portrait(model)
    write = Planned.write

    def interrupted(self: Planned) -> None:
        write(self)
        if self.report.name == "bn2":
            raise KeyboardInterrupt

    monkeypatch.setattr(Planned, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nk.load_norm_state(model, {**keras_of("bn1", 1), **keras_of("bn2", 2)}, "keras")
    assert_same(before, portrait(model))


LOST: dict[str, tuple[Any, dict[str, Any], str]] = {
    "source": (keras_of("bn1", 1), {"source": "chainer"}, "source must be one of keras, tensorflow, flax"),
    "none": ({}, {}, "a mapping without one array"),
    "no_norm": ({"dense/kernel": np.ones((2, 2))}, {}, "has no norm that is known"),
    "mine": (keras_of("bn1", 1), {"names": {"bn9": "bn1"}}, "the model has no norm 'bn9'; it has bn1, bn2, gn, ln"),
    "theirs": (keras_of("bn1", 1), {"names": {"bn1": "bn7"}}, "the state has no norm 'bn7'; it has bn1"),
    "twice": (keras_of("a", 1), {"names": {"bn1": "a", "bn2": "a"}}, "'a' is given to two layers"),
    "nan": ({**keras_of("bn1", 1), "bn1/beta": np.full(6, np.nan)}, {}, "bn1/beta holds NaN or Inf"),
    "negative": ({**keras_of("bn1", 1), "bn1/moving_variance": -np.ones(6)}, {}, "the negative variance of bn1"),
    "untracked": ({"bn1/gamma": np.ones(6)}, {}, "keeps running statistics, and bn1 has none"),
    "statistics_for_a_group_norm": (keras_of("gn", 1), {}, "gn .* keeps no running statistics, and gn does"),
    "eps_of_nobody": (keras_of("bn1", 1), {"eps": {"bn2": 1e-3}}, "eps= names bn2, which nothing is loaded into"),
    "eps_below_0": (keras_of("bn1", 1), {"eps": -1e-3}, "eps must be 0 or more, got -0.001"),
    "eps_nan": (keras_of("bn1", 1), {"eps": float("nan")}, "eps must be 0 or more, got nan"),
    "momentum_above_1": (keras_of("bn1", 1), {"momentum": {"bn1": 1.5}}, "momentum must be from 0 to 1, got 1.5"),
    "values_half": (keras_of("bn1", 1), {"values": 2.5}, "values must be a whole number, 2 or more, got 2.5"),
    "pair": (keras_of("a", 1), {"names": {"bn1": ("a", "b")}}, "a pair \\(norm, its scale\\) is for Caffe"),
    "fix_gamma": (keras_of("bn1", 1), {"fix_gamma": True}, "fix_gamma= is for MXNet"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_does_not_fit_is_said_and_changes_nothing(name: str) -> None:
    state, options, text = LOST[name]
    model = Net()
    before = portrait(model)
    with pytest.raises(ValueError, match=text):
        nk.load_norm_state(model, state, **{"source": "keras", **options})
    assert_same(before, portrait(model))


def test_a_shared_weight_takes_one_value_only() -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm2d(6), "b": nn.BatchNorm2d(6)})
    model.b.weight = model.a.weight
    before = portrait(model)
    with pytest.raises(ValueError, match="b and a share weight, and b and a have different values for it; nothing was"):
        nk.load_norm_state(model, {**keras_of("a", 1), **keras_of("b", 2)}, "keras")
    assert_same(before, portrait(model))
    nk.load_norm_state(model, {**keras_of("a", 1), **keras_of("b", 1)}, "keras")


@pytest.mark.parametrize("source", FACTS)
def test_a_state_of_another_kind_is_a_type_error_that_says_what_is_expected(source: str) -> None:
    with pytest.raises(TypeError, match=r"expected .*, got a int"):
        nk.load_norm_state(Net(), 3, source)
    with pytest.raises(TypeError, match="names must be a mapping"):
        nk.load_norm_state(Net(), keras_of("bn1", 1), "keras", names=["bn1"])  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["lazy", "meta", "parametrized"])
def test_layers_that_cannot_be_written_are_named(change: str) -> None:
    model: nn.Module = Net()
    if change == "lazy":
        model.bn1 = nk.LazyBatchNorm2d()
    elif change == "meta":
        model.to("meta")
    else:
        nn.utils.parametrize.register_parametrization(model.bn1, "weight", nn.Identity())
    text = {"lazy": "is lazy", "meta": "on the meta device", "parametrized": "a parametrized weight"}[change]
    with pytest.raises(ValueError, match=f"bn1 .*{text}"):
        nk.load_norm_state(model, keras_of("bn1", 1), "keras")


def test_half_precision_weights_take_what_fits() -> None:
    model = Net().half()
    nk.load_norm_state(model, keras_of("bn1", 1), "keras")
    assert model.bn1.weight.dtype == torch.float16
    assert model.bn1.running_var.dtype == torch.float32
    with pytest.raises(ValueError, match=r"torch.float16, which cannot hold the values of bn1"):
        nk.load_norm_state(model, {**keras_of("bn1", 1), "bn1/gamma": np.full(6, 1e6)}, "keras")


def test_a_class_of_its_own_is_left_with_the_reason() -> None:
    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

    model = nn.ModuleDict({"bn": nn.BatchNorm2d(6), "own": OwnNorm()})
    report = nk.load_norm_state(model, keras_of("bn", 1), "keras")
    assert dict(report.missing)["own"].startswith("OwnNorm is a class of its own")


# --- the kinds of batch norm, and layout


@pytest.mark.parametrize("kind", ["frozen", "sync", "ghost", "renorm"])
def test_the_kin_of_batch_norm_take_the_same_state(kind: str) -> None:
    model = nk.convert(Net(), kind, only="bn1")
    nk.load_norm_state(model, keras_of("bn1", 1), "keras")
    x = images()
    torch.testing.assert_close(model.eval().bn1(x).double(), normalized(x, arrays(1), 1e-3), rtol=1e-5, atol=1e-5)


def test_gamma_over_several_axes_moves_its_channels_to_the_front() -> None:
    gamma = np.arange(2 * 3 * 4, dtype="float32").reshape(2, 3, 4)  # (H, W, C)
    model = nn.ModuleDict({"ln": nn.LayerNorm((4, 2, 3))})
    report = nk.load_norm_state(model, {"ln/gamma": gamma, "ln/beta": -gamma}, "keras")
    assert torch.equal(model.ln.weight, torch.from_numpy(gamma).movedim(-1, 0))
    assert torch.equal(model.ln.bias, -torch.from_numpy(gamma).movedim(-1, 0))
    assert "weight: channels from the last axis to the first" in report["ln"].converted
    tokens = nn.ModuleDict({"ln": nn.LayerNorm((2, 4))})
    nk.load_norm_state(tokens, {"ln/gamma": gamma[:, 0]}, "keras")
    assert torch.equal(tokens.ln.weight, torch.from_numpy(gamma[:, 0].copy()))


def test_axes_of_one_size_are_not_guessed() -> None:
    gamma = np.arange(27, dtype="float32").reshape(3, 3, 3)
    model = nn.ModuleDict({"ln": nn.LayerNorm((3, 3, 3))})
    with pytest.raises(ValueError, match="nothing tells whether the channels come first or last"):
        nk.load_norm_state(model, {"ln/gamma": gamma}, "keras")


# --- the report


def test_the_report_is_data_first() -> None:
    report = nk.load_norm_state(Net(), {**keras_of("bn1", 1), **keras_of("stem", 2)}, "keras")
    assert LoadedState.from_json(report.to_json()) == report
    assert report["bn1"].what == ("weight", "bias", "running_mean", "running_var")
    assert "1 norms from keras; left: 3 of the model, 1 of the state" in str(report)
    assert "bn1" in report._repr_html_()
    with pytest.raises(KeyError):
        report["nowhere"]
