"""What recalibrate leaves alone, and that it says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normkit as nk
from tests.cases import generator
from tests.statistics.nets import assert_unchanged, data, net, state
from tests.surgery.lookalikes import RunningMeanStd


def test_a_layer_in_eval_mode_inside_a_training_model_keeps_its_statistics():
    model = net().train()
    model[0].eval()
    before = state(model[0])
    report = nk.recalibrate(model, data())
    assert_unchanged(model[0], before)
    assert report["0"].reason == "in eval mode while the model is in train mode"
    assert report["2"].action == "recalibrated"
    assert [m.training for m in model] == [False, True, True, True, True, True]


def test_a_fixed_layer_is_used_as_it_is_by_the_layers_behind_it():
    batches, model = data((8,)), net().train()
    model[0].eval()
    with torch.no_grad():
        model[0].running_mean.fill_(2.0)
        expected = model[1](model[0](batches[0])).double().mean((0, 2, 3))
    nk.recalibrate(model, batches)
    torch.testing.assert_close(model[2].running_mean.double(), expected, rtol=1e-6, atol=1e-6)


def test_in_a_model_in_eval_mode_every_unfrozen_layer_is_recalibrated():
    model = net().eval()
    report = nk.recalibrate(model, data())
    assert [layer.name for layer in report.recalibrated] == ["0", "2"]
    assert not any(module.training for module in model.modules())


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and detectron2's: four buffers, no norm among its bases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.5), ("running_var", 2.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        return (x - self.running_mean.reshape(shape)) / self.running_var.reshape(shape).sqrt()


FIXED = {
    "normkit_frozen": (lambda: nk.FrozenBatchNorm2d(3), "frozen"),
    "foreign_frozen": (lambda: FrozenBatchNorm2d(3), "frozen"),
    "untracked": (lambda: nn.BatchNorm2d(3, track_running_stats=False), "keeps no running statistics"),
    "untracked_instance": (lambda: nn.InstanceNorm2d(3), "keeps no running statistics"),
    "lazy": (lambda: nn.LazyBatchNorm2d(), "not initialized: a lazy layer learns its size from its first forward"),
}


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("make", "reason"), FIXED.values(), ids=FIXED)
def test_fixed_layers_stay_and_are_listed(make, reason, mode):
    model = nn.Sequential(make(), nn.BatchNorm2d(3)).train(mode)
    before = None if reason.startswith("not init") else state(model[0])
    report = nk.recalibrate(model, data())
    assert report["0"].reason == reason
    assert report["1"].action == "recalibrated"
    if before is not None:
        assert_unchanged(model[0], before)


def test_tracking_switched_off_later_holds_the_statistics():
    model = net()
    model[0].track_running_stats = False
    report = nk.recalibrate(model, data())
    assert report["0"].reason == "track_running_stats is False"
    assert model[0].running_mean.eq(0).all()


def test_a_layer_that_no_batch_reaches_is_left_alone_and_reported():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    for sequential in (False, True):
        model = Branches()
        before = state(model.unused)
        report = nk.recalibrate(model, data(), sequential=sequential)
        assert_unchanged(model.unused, before)
        assert report.unreached == ("unused",)
        assert report["used"].action == "recalibrated"


def test_a_layer_with_one_value_in_all_is_left_alone():
    layer = nn.BatchNorm1d(3)
    before = state(layer)
    report = nk.recalibrate(layer, [torch.randn(1, 3, generator=generator())])
    assert_unchanged(layer, before)
    assert report[""].reason == "fewer than 2 finite values per channel"


@pytest.mark.parametrize("only", ["2", nn.Conv2d, lambda name, _: name == "2", ["nothing", "2"]])
def test_only_selects_by_name_type_and_function(only):
    if only is nn.Conv2d:
        with pytest.raises(ValueError, match="selects none of the 2 layers with running statistics; they are 0"):
            nk.recalibrate(net(), data(), only=only)
        return
    model = net()
    report = nk.recalibrate(model, data(), only=only)
    assert report["0"].reason == "not selected by only="
    assert model[0].running_mean.eq(0).all()
    assert [layer.name for layer in report.recalibrated] == ["2"]


def test_a_model_without_running_statistics_is_not_even_run():
    ran = []
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3))
    model.register_forward_hook(lambda *_: ran.append(1))
    report = nk.recalibrate(model, data())
    assert (len(report), ran) == (0, [])


def test_a_batch_with_nan_or_inf_does_not_count():
    batches, broken = data((6, 6)), data((6,))[0]
    broken[0, 0, 0, 0], broken[1, 1, 0, 0] = float("nan"), float("inf")
    clean, model = net(), net()
    nk.recalibrate(clean, batches)
    with pytest.warns(RuntimeWarning, match="skipped 1 calls with NaN or Inf at 0 and calls at 1 other layers"):
        report = nk.recalibrate(model, [batches[0], broken, batches[1]])
    assert_unchanged(model, state(clean))
    assert (report["0"].skipped, report["0"].calls, report["0"].values) == (1, 3, 12 * 36)


def test_statistics_beyond_the_range_of_the_buffer_are_not_written():
    layer = nn.BatchNorm1d(2)
    x = torch.randn(8, 2, generator=generator()) * 1e30  # a variance of 1e60 is no float32
    report = nk.recalibrate(layer, [x])
    assert report[""].reason == "overflow torch.float32"
    assert layer.running_var.eq(1).all()


ALIKE = {
    "whole observations": ((3, 6, 6), "its running_mean of shape (3, 6, 6) is not one value per channel"),
    "the last axis": ((6,), "its input of shape (4, 3, 6, 6) does not have its 6 channels on axis 1"),
    "the last axis, of as many": (
        (3,),
        "it does not normalize axis 1 of its input of shape (4, 3, 6, 3) by its statistics",
    ),
}


@pytest.mark.parametrize("sequential", [False, True], ids=["parallel", "sequential"])
@pytest.mark.parametrize(("shape", "reason"), ALIKE.values(), ids=ALIKE)
def test_a_module_that_shares_the_names_alone_is_left_alone(shape, reason, sequential):
    batches = [x[..., : shape[-1]] for x in data((4, 7))]
    model = nn.Sequential(RunningMeanStd(shape), nn.BatchNorm2d(3))
    before = state(model[0])
    report = nk.recalibrate(model, batches, sequential=sequential)
    assert (report["0"].action, report["0"].reason) == ("left alone", reason)
    assert report["1"].action == "recalibrated"
    assert_unchanged(model[0], before)
    plain = model[0](batches[0])
    with nk.adapt(model[0].train()):
        assert torch.equal(model[0](batches[0]), plain)


def test_a_module_that_normalizes_channels_without_being_a_norm_is_recalibrated():
    model, batches = RunningMeanStd((3,)), [x[..., 0, 0] for x in data((8, 9))]
    assert nk.recalibrate(model, batches)[""].action == "recalibrated"
    torch.testing.assert_close(model.running_mean, torch.cat(batches).mean(0))
