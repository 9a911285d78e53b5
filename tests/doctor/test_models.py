"""The doctor on models of every form: no alarm on a healthy one, the fault of a sick one named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.blame import exceeds
from normkit.doctor.examples import images, settled, small_net

F = nn.functional


class Answering(nn.Module):
    """A small net whose answer has another form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form = small_net(), form
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x))


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "nested": lambda y: {"a": y, "b": [y + 1, (y.argmax(1), None)]},
    "random": lambda y: y + 0.1 * F.dropout(torch.ones_like(y), 0.5, True),
    "nothing": lambda y: None,
    "integers": lambda y: y.argmax(1),
    "another size each time": lambda y: [y[y > 0]],
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm1d(8),
    "cumulative": lambda: nn.BatchNorm1d(8, momentum=None),
    "no affine": lambda: nn.BatchNorm1d(8, affine=False),
    "instance": lambda: nn.InstanceNorm1d(8, affine=True, track_running_stats=True),
    "sync": lambda: nn.SyncBatchNorm(8),
    "ghost": lambda: nk.GhostBatchNorm1d(8),
    "renorm": lambda: nk.BatchRenorm1d(8),
    "ours": lambda: nk.BatchNorm1d(8),
}
WITHOUT: dict[str, Callable[[], nn.Module]] = {
    "group": lambda: nn.GroupNorm(2, 8),
    "instance": lambda: nn.InstanceNorm1d(8),
    "untracked": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "frozen": lambda: nk.FrozenBatchNorm1d(8),
}


def words() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(32, 8, 20, generator=g) + torch.randn(32, 1, 1, generator=g) for _ in range(6)]


def net(norm: nn.Module) -> Any:
    return settled(nn.Sequential(norm, nn.Conv1d(8, 4, 3)), words())


@pytest.mark.parametrize("form", FORMS)
def test_answers_of_every_form(form: str) -> None:
    model = Answering(FORMS[form])
    assert nk.diagnose(model, images()).healthy
    model.net[4].running_var.mul_(14)
    keys = [finding.key for finding in nk.diagnose(model, images()).findings]
    assert "NK103 net.4" in keys  # an error where answers can be compared, a note where not


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_with_statistics(norm: str, training: bool) -> None:
    model = net(NORMS[norm]()).train(training)
    assert nk.diagnose(model, words()).healthy
    model[0].running_var.mul_(14)
    assert [finding.key for finding in nk.diagnose(model, words()).at_least("warning")] == ["NK103 0"]


@pytest.mark.parametrize("norm", WITHOUT)
def test_norms_without_statistics_to_move(norm: str) -> None:
    model = net(WITHOUT[norm]())
    assert nk.diagnose(model, words()).healthy
    assert nk.diagnose(model.train(), words()).healthy


CHANGED: dict[str, Callable[[Any], nn.Module]] = {
    "accelerated": lambda model: nk.accelerate(model, images()[0]),
    "converted": lambda model: nk.convert(model, "batch"),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float64": lambda model: model.double(),
    "one batch norm": lambda model: settled(nn.BatchNorm2d(3), images()),
}


@pytest.mark.parametrize("change", CHANGED)
def test_changed_models(change: str) -> None:
    model = CHANGED[change](small_net())
    dtype = next(model.parameters()).dtype
    assert nk.diagnose(model, [batch.to(dtype) for batch in images()]).healthy


def test_a_model_that_works_in_place_leaves_the_batches_alone() -> None:
    layers = nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
    batches = images()
    model = settled(nn.Sequential(*layers), copy.deepcopy(batches))
    for mode in (False, True):
        assert nk.diagnose(model.train(mode), batches).healthy
        assert all(torch.equal(a, b) for a, b in zip(batches, images(), strict=True))


def test_statistics_of_another_sample_are_no_error() -> None:
    """What two samples of one distribution differ by is less than what batches do."""
    halves = images(batches=16, size=8)
    model = settled(small_net(), halves[:8])
    found = nk.diagnose(model, halves[8:])
    assert found.healthy
    assert found.change is not None
    assert found.change > 0


@pytest.mark.parametrize("size", [2, 8, 32, 128])
def test_how_severe_a_fault_is_does_not_depend_on_the_loaders_batches(size: int) -> None:
    model = small_net()
    model[1].running_var.mul_(1.6)
    found = nk.diagnose(model, images(batches=4 if size > 32 else 16, size=size), select=["NK103"])
    assert [(finding.key, finding.severity) for finding in found.findings] == [("NK103 1", "error")]


def test_a_change_is_held_against_what_batches_of_32_images_differ() -> None:
    assert not exceeds([0.3], [0.2], 32)  # less than twice
    assert exceeds([0.3], [0.2], 8)  # batches of 32 would differ by half of it
    assert exceeds([0.3], [0.1], 32)
    assert not exceeds([0.3], [0.1], 128)  # as large ones do not excuse, they do not accuse
    assert not exceeds([0.04], [0.0], 32)  # nothing that is felt


def test_lazy_and_scripted_models_say_what_they_are() -> None:
    found = nk.diagnose(nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d()), images())
    assert [finding.code for finding in found.at_least("error")] == ["NK001"]
    assert "lazy layers without a shape" in found.findings[0].cause
    scripted = torch.jit.script(small_net())
    assert nk.diagnose(scripted, images()).norms == 0


def test_an_average_of_models_is_noted_until_batches_show_that_it_fits() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(small_net())
    averaged.update_parameters(small_net(seed=1))
    averaged.eval()
    assert "NK112" in [finding.code for finding in nk.diagnose(averaged).findings]
    nk.recalibrate(averaged, images(), progress=False)
    assert "NK112" not in [finding.code for finding in nk.diagnose(averaged, images()).findings]


@pytest.mark.filterwarnings("ignore")  # torch.ao announces its successor
def test_a_quantized_model_uses_its_statistics_whatever_its_modes_say() -> None:
    quantization = torch.ao.quantization
    norms = nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), *norms, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = settled(nn.Sequential(*layers), images())
    model = nn.Sequential(quantization.QuantStub(), model, nn.LayerNorm(4), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(model)
    for batch in images():
        prepared(batch)
    quantized = quantization.convert(prepared)
    assert quantized[1][2].training  # as torch makes it, which says nothing
    found = nk.diagnose(quantized, images())
    assert found.healthy
    assert found.norms == 4
    assert [layer.name for layer in nk.recalibrate(quantized, images(), progress=False).recalibrated] == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_go_through() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8)).eval()
    words = [torch.nested.nested_tensor([torch.randn(n, 8) for n in (3, 5)], layout=torch.jagged) for _ in range(3)]
    assert nk.diagnose(model, words).healthy


def test_a_module_with_extra_state_is_compared_by_its_tensors() -> None:
    class Told(nn.Sequential):
        def get_extra_state(self) -> Any:
            return {"recipe": "fp8"}

        def set_extra_state(self, state: Any) -> None:
            pass

    model = Told(*small_net())
    assert nk.diagnose(nn.Sequential(model).eval(), images()).healthy
