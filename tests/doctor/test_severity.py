"""Severity follows what was measured: an error where it is felt, a note where it is not, a warning without batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.blame import exceeds_together
from normkit.doctor.examples import images, settled, small_net

MobileNetV3 = type("MobileNetV3", (nn.Sequential,), {"__module__": "torchvision.models.mobilenetv3"})


def severity(code: str, model: nn.Module, batches: Any = None) -> str:
    (finding,) = nk.diagnose(model, batches, select=[code]).findings
    return finding.severity


def awake() -> Any:
    layers = nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    model = settled(nn.Sequential(*layers), images())
    model[2].train()
    return model


def test_a_training_mode_norm_is_an_error_where_the_answer_feels_its_batches() -> None:
    assert severity("NK207", awake(), images(batches=16, size=4)) == "error"
    assert severity("NK207", awake(), images(batches=2, size=1024)) == "note"  # so many say what all would
    assert severity("NK207", awake()) == "warning"


def rebuilt(scale: float) -> nn.Module:
    """With eps 1e-5 where the reference has 1e-3, at a variance of about scale^2."""
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    model = MobileNetV3(*layers)
    with torch.no_grad():
        model[0].weight.mul_(scale)
    return settled(model, images())


def test_a_lost_eps_is_an_error_where_the_answer_feels_it() -> None:
    assert severity("NK106", rebuilt(0.02), images()) == "error"
    assert severity("NK106", rebuilt(0.02)) == "warning"
    assert severity("NK106", rebuilt(1.0), images()) == "note"
    assert severity("NK106", rebuilt(1.0)) == "note"


def test_a_lost_eps_that_nothing_feels_is_a_note() -> None:
    model = rebuilt(0.02)
    with torch.no_grad():
        model[3].weight.zero_()  # nothing comes through
    assert severity("NK106", model, images()) == "note"
    assert all(module.eps == 1e-5 for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_statistics_that_never_moved_are_an_error_by_measure_and_a_warning_without() -> None:
    model = small_net()
    model[4].reset_running_stats()
    assert severity("NK101", model, images()) == "error"
    assert severity("NK101", model) == "warning"
    with torch.no_grad():
        model[-1].weight.zero_()
    assert severity("NK101", model, images()) == "note"


@pytest.mark.parametrize(("training", "expected"), [(True, "warning"), (False, "note")])
def test_momentum_in_another_direction_harms_training(training: bool, expected: str) -> None:
    model = small_net().train(training)
    model[4].momentum = 0.99
    assert severity("NK105", model) == expected
    assert severity("NK105", model, images()) == "note"  # settled


def test_a_pass_under_unsettled_statistics_that_goes_astray_is_not_taken() -> None:
    """Forty layers without a skip, each of which makes differences larger: the refined statistics stay near."""

    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x + x.square()

    layers: list[nn.Module] = []
    for _ in range(40):
        layers += [nn.BatchNorm2d(3), Doubling()]
    model = nn.Sequential(*layers).eval()
    batches = [(batch * (1 + 3 * (i % 2)), None) for i, batch in enumerate(images(batches=4, size=4))]
    nk.recalibrate(model, batches, progress=False)
    found = nk.doctor.attribute_gap(model, batches, progress=False)
    assert all(share.distance is None or share.distance < 10 for share in found.shares)


def test_a_dead_channels_variance_of_zero_explains_nothing() -> None:
    """A channel that stands still in the data too is right, whatever else is wrong with the layer."""
    model = small_net()
    with torch.no_grad():
        model[3].weight[2] = 0
    model = settled(model, images())
    assert float(model[4].running_var[2]) == 0
    model[4].running_var.mul_(14)
    found = nk.diagnose(model, images()).at_least("warning")
    assert [(finding.key, finding.follows) for finding in found] == [("NK103 4", ())]


def test_a_living_channels_variance_of_zero_is_an_error_and_explains_the_distance() -> None:
    model = small_net()
    model[4].running_var[2] = 0
    findings = {finding.key: finding for finding in nk.diagnose(model, images()).at_least("warning")}
    assert set(findings) == {"NK103 4", "NK107 4"}
    assert findings["NK107 4"].follows == ("NK103 4",)


def test_with_momentum_0_no_batch_counts() -> None:
    model = small_net()
    model[4].momentum = 0.0
    assert nk.diagnose(model, images(), select=["NK104"]).findings == ()  # right as they are
    model[4].running_var.mul_(14)
    findings = {finding.key: finding for finding in nk.diagnose(model, images()).at_least("warning")}
    assert set(findings) == {"NK103 4", "NK104 4"}
    found = findings["NK104 4"]
    assert (found.measured, found.follows) == (1.0, ("NK103 4",))
    assert "with momentum 0, 1000 batches leave 100% of what was there before them" in found.cause


def test_of_a_rule_that_speaks_of_many_layers_the_worst_are_shown_and_the_others_named() -> None:
    layers: list[nn.Module] = []
    for i in range(8):
        layers += [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model: Any = settled(nn.Sequential(*layers), images())
    for i in range(8):
        model[3 * i + 1].running_var[0] = float("nan")
    found = nk.diagnose(model)
    assert len(found.at_least("error")) == 8
    text = str(found)
    assert text.count("error NK108") == 4
    assert "error NK108  the same at 10, 13, 16 and 2 more" in text
    assert text.count("\n  fix: ") == 3


def test_a_trained_network_that_lost_all_its_statistics_is_not_taken_for_a_new_one() -> None:
    """As a checkpoint of parameters alone leaves it."""
    model = small_net()
    for norm in (model[1], model[4]):
        norm.reset_running_stats()
    found = nk.diagnose(model, images()).at_least("error")
    assert "NK101" in {finding.code for finding in found}
    for norm in (model[1], model[4]):
        norm.reset_parameters()
    assert nk.diagnose(model, images()).healthy  # a new one


def test_one_channel_whose_variance_is_far_too_large_is_named() -> None:
    """Its distance comes near 1 and never beyond: what is divided by it is as good as constant."""
    model = small_net()
    model[1].running_var[3] *= 1e4
    (found,) = nk.diagnose(model, images()).at_least("warning")
    assert found.key == "NK103 1"
    assert "channel 3" in found.cause


def deep() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for i in range(6):
            layers += [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        return settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), images())


def unlike(batches: int, size: int, seed: int) -> list[Tensor]:
    """Images that differ much, so that a few of them are no sample."""
    g = torch.Generator().manual_seed(seed)
    shape = batches * size, 3, 8, 8
    light, contrast = torch.randn(shape[0], 3, 1, 1, generator=g) * 1.5, torch.rand(shape[0], 1, 1, 1, generator=g)
    return list((torch.randn(shape, generator=g) * (0.3 + contrast) + light).split(size))


def test_statistics_of_five_images_are_named_though_no_layer_is_surely_off() -> None:
    model, batches = deep(), unlike(4, 8, 6)
    nk.recalibrate(model, unlike(8, 8, 5), progress=False)
    assert nk.diagnose(model, batches).healthy
    nk.recalibrate(model, unlike(1, 5, 1), progress=False)
    found = nk.diagnose(model, batches)
    assert [(finding.key, finding.severity) for finding in found.at_least("warning")] == [
        ("NK103 (the model itself)", "error")
    ]
    healed, healing = found.healing(model)
    assert nk.diagnose(healed, batches).healthy
    assert [treatment.what for treatment in healing.treatments] == ["6 layers recalibrated"]


def test_together_statistics_are_held_against_the_batches_given_and_what_these_can_tell() -> None:
    assert exceeds_together([0.6], [0.3], 8, 64)
    assert not exceeds_together([0.4], [0.3], 8, 64)  # less than one and a half times
    assert not exceeds_together([0.6], [0.3], 8, 8)  # the exact statistics are of no more images
    assert not exceeds_together([0.6], [0.3], 128, 1280)  # batches of 32 would differ by 0.6
    assert not exceeds_together([9.0], [0.96], 8, 64)  # a chaotic network
    assert not exceeds_together(None, [0.3], 8, 64)


def test_what_a_state_alone_says_of_statistics_that_never_moved() -> None:
    model = small_net()
    for norm in (model[1], model[4]):
        norm.reset_running_stats()
    assert {finding.severity for finding in nk.diagnose(model, select=["NK101"]).findings} == {"error"}
    assert {finding.severity for finding in nk.diagnose(model.state_dict()).findings} == {"error"}
    both = nk.diagnose({"model": small_net().state_dict(), "ema": model.state_dict()}, select=["NK101"])
    assert {(finding.where, finding.severity) for finding in both.findings} == {
        ("ema: 1", "error"),
        ("ema: 4", "error"),
    }
    assert {finding.severity for finding in nk.diagnose(model.train(), select=["NK101"]).findings} == {"warning"}
    frozen = nk.freeze(model.eval())  # merged into gamma and beta, on purpose
    assert {finding.severity for finding in nk.diagnose(frozen, select=["NK101"]).findings} <= {"note"}
    for norm in (model[1], model[4]):
        norm.reset_parameters()
    assert {finding.severity for finding in nk.diagnose(model, select=["NK101"]).findings} == {"note"}
