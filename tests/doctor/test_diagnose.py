"""What a diagnosis measures, and what it does to a model: nothing."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normkit as nk
import normkit.doctor
from normkit.doctor.examples import images, replicated, settled, small_net

SCHEMA = json.loads((Path(normkit.doctor.__file__).parent / "schema.json").read_text(encoding="utf-8"))
TYPES: Mapping[str, Any] = {
    "string": str, "integer": int, "number": (int, float), "null": type(None), "boolean": bool, "array": list,
    "object": dict,
}  # fmt: skip


def verify(value: Any, schema: Mapping[str, Any], place: str = "it") -> None:
    """The part of JSON schema that schema.json uses."""
    assert set(schema) <= {
        *("$schema", "title", "description", "type", "required", "properties", "additionalProperties", "const", "enum"),
        *("items", "minimum", "pattern"),
    }
    if "const" in schema:
        assert value == schema["const"], place
    if "enum" in schema:
        assert value in schema["enum"], place
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        assert any(isinstance(value, TYPES[kind]) for kind in kinds), (place, value)
    if isinstance(value, dict):
        assert set(schema["required"]) <= set(value) <= set(schema["properties"]), place
        for key, part in value.items():
            verify(part, schema["properties"][key], f"{place}.{key}")
    if isinstance(value, list):
        for part in value:
            verify(part, schema["items"], f"{place}[]")


def sick_net(layer: int = 4) -> Any:
    model = small_net()
    model[layer].running_var.mul_(14)
    return model


def test_the_distance_is_that_of_the_running_from_the_exact_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, eps=0.25)).eval()
    batches = images(batches=8, size=64)
    var, mean = torch.var_mean(torch.cat(batches).double(), (0, 2, 3))
    model[0].running_mean.copy_(mean + 2)  # type: ignore[union-attr, operator]  # a batch norm
    model[0].running_var.copy_(var)  # type: ignore[union-attr, operator]  # a batch norm
    (layer,) = nk.diagnose(model, batches).layers
    expected = (4 / (var + 0.25)).mean().sqrt()
    assert layer.distance == pytest.approx(float(expected), rel=2e-3)  # 2e-3: what sampling adds is taken off


def test_an_early_fault_is_not_blamed_on_later_layers() -> None:
    found = nk.diagnose(sick_net(1), images())
    assert [finding.key for finding in found.at_least("warning")] == ["NK103 1"]
    figures = {layer.name: layer for layer in found.layers}
    assert figures["4"].distance is not None
    assert figures["4"].distance < 0.02
    assert found.change is not None
    assert figures["1"].change == pytest.approx(found.change, rel=0.05)  # one is of the first four batches


def test_a_distance_that_the_answer_does_not_feel_is_a_note() -> None:
    model = sick_net()
    with torch.no_grad():
        model[-1].weight.zero_()  # nothing comes through
    (finding,) = [f for f in nk.diagnose(model, images()).findings if f.code == "NK103"]
    assert finding.severity == "note"


def test_few_images_cannot_tell() -> None:
    found = nk.diagnose(small_net(), images(batches=1, size=8))
    assert found.healthy
    (note,) = [f for f in found.findings if f.code == "NK113"]
    assert note.measured == 8
    assert note.limit is not None
    assert 50 < note.limit < 100
    enough = nk.diagnose(small_net(), images(batches=8, size=math.ceil(note.limit / 8)))
    assert "NK113" not in [finding.code for finding in enough.findings]


@pytest.mark.parametrize("batches", [images(batches=1, size=1), images(batches=1, size=64), images(batches=2, size=1)])
def test_one_batch_or_one_image_raises_no_alarm(batches: list[Tensor]) -> None:
    assert nk.diagnose(small_net(), batches).healthy


def test_one_batch_is_enough_for_a_large_fault() -> None:
    assert not nk.diagnose(sick_net(), images(batches=1, size=128)).healthy


def test_the_same_input_gives_the_same_json_and_it_fits_its_schema() -> None:
    found = [nk.diagnose(sick_net(), images()).to_json() for _ in range(2)]
    assert found[0] == found[1]
    document = json.loads(found[0])
    verify(document, SCHEMA)
    assert document["findings"][0]["code"] == "NK103"
    nan = small_net()
    nan[4].running_var[0] = float("nan")
    verify(json.loads(nk.diagnose(nan, images()).to_json()), SCHEMA)


@pytest.mark.parametrize("mode", [False, True])
def test_the_model_is_given_back_untouched(mode: bool) -> None:
    model = sick_net().train(mode)
    calls: list[str] = []
    model[4].register_forward_hook(lambda *_: calls.append("hook"))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    dictionaries = [dict(module.__dict__) for module in model.modules()]
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(2), random.random()
    torch.manual_seed(3)
    random.seed(3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = DataLoader(TensorDataset(torch.cat(images())), batch_size=32, shuffle=True)
    nk.diagnose(model, data, optimizer=optimizer)
    assert torch.equal(torch.rand(2), expected[0])
    assert random.random() == expected[1]
    assert torch.is_grad_enabled()
    assert [dict(module.__dict__) for module in model.modules()] == dictionaries
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert all(module.training is mode for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert optimizer.state == {}


def test_a_model_that_raises_gets_the_rules_of_its_state() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.net[4].running_var[0] = -1

        def forward(self, x: Tensor) -> Tensor:
            self.net[:2](x)
            raise ArithmeticError("no\nluck")

    model = Broken()
    found = nk.diagnose(model, images())
    assert [finding.key for finding in found.at_least("error")] == ["NK001 (the model itself)", "NK107 net.4"]
    assert "ArithmeticError: no luck" in found.findings[0].cause
    assert str(found).startswith("Broken: 2 norms, from the state alone\n")
    assert "forward" not in model.net[1].__dict__  # the stand-in is gone


def test_a_model_without_norms_is_healthy() -> None:
    found = nk.diagnose(nn.Sequential(nn.Linear(2, 2)), [torch.randn(4, 2)])
    assert found.healthy
    assert found.findings == ()
    assert str(found).startswith("Sequential has no normalization layers")


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "expected at least one batch, got none"),
        (torch.zeros(4, 3, 8, 8), TypeError, "put a single batch into a list"),
        ([3], TypeError, "a batch must be a tensor"),
        ([{"pixels": torch.zeros(1)}], TypeError, "Sequential.forward does not take such a batch"),
    ],
)
def test_what_is_no_batch_is_refused(batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nk.diagnose(small_net(), batches)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a model"):
        nk.diagnose("resnet50")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="a state dict alone has none"):
        nk.diagnose(small_net().state_dict(), images())


def test_a_generator_and_a_forward_of_ones_own_serve() -> None:
    def pairs() -> Iterator[dict[str, Tensor]]:
        for batch in images():
            yield {"pixels": batch}

    found = nk.diagnose(sick_net(), pairs(), forward=lambda model, batch: {"logits": model(batch["pixels"])})
    assert [finding.key for finding in found.at_least("error")] == ["NK103 4"]
    assert "NK501" in [finding.code for finding in found.findings]  # the flow is seen too


def test_wrapped_and_averaged_models_are_seen_through() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(sick_net())
    found = nk.diagnose(averaged.eval(), images())
    assert [finding.key for finding in found.at_least("error")] == ["NK103 module.4"]


def test_a_replicated_model_is_named_and_mended_by_its_own_names() -> None:
    model = replicated(sick_net())
    found = nk.diagnose(model, images())
    assert [finding.key for finding in found.at_least("error")] == ["NK103 4"]
    healed, healing = found.healing(model, inplace=True)
    assert healing.left == 0
    assert healed is model
    assert nk.diagnose(model, images()).healthy


def test_eps_of_another_library_with_the_same_class_name_is_no_warning() -> None:
    class MobileNetV3(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
            with torch.no_grad():
                self.net[0].weight.mul_(1e-2)  # type: ignore[union-attr, operator]  # a convolution

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    severities = {}
    for library in ("timm.models.mobilenetv3", "torchvision.models.mobilenetv3"):
        MobileNetV3.__module__ = library
        found = nk.diagnose(settled(MobileNetV3(), images()), images(), select=["NK106"])
        severities[library.partition(".")[0]] = [(f.key, f.severity) for f in found.findings]
    assert severities == {"timm": [], "torchvision": [("NK106 net.1", "error")]}


def test_values_under_a_mask_count_neither_for_the_statistics_nor_for_how_images_differ() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.head = nk.BatchNorm1d(8), nn.Linear(8, 4)

        def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
            return self.head(self.bn(words, mask=nk.mask_from_lengths(lengths, words.shape[2])).mean(2))

    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(8):
        lengths = torch.randint(2, 20, (32,), generator=g)
        words = torch.randn(32, 8, 20, generator=g)
        words[~nk.mask_from_lengths(lengths, 20).unsqueeze(1).expand_as(words)] = 1e6
        batches.append({"words": words, "lengths": lengths})
    model = Masked().eval()
    nk.recalibrate(model, batches, progress=False)
    found = nk.diagnose(model, batches)
    assert found.healthy
    assert found.images == 256
    assert found.layers[0].margin is not None
    assert found.layers[0].margin < 0.15
    model.bn.running_var.mul_(14)  # type: ignore[union-attr]  # it tracks
    assert [finding.key for finding in nk.diagnose(model, batches).at_least("error")] == ["NK103 bn"]


def test_group_and_layer_norms_raise_no_alarm() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(2, 32), nn.Flatten(), nn.LayerNorm(1152)), images())
    assert nk.diagnose(model, images()).healthy
    assert nk.diagnose(model.train(), images()).healthy


def test_hostile_names_are_shown_literally() -> None:
    model = nn.Sequential()
    model.add_module("<script>alert(1)</script>[red]", sick_net())
    found = nk.diagnose(model, images())
    assert "<script>" in str(found)
    assert "<script>" not in found._repr_html_()
    rich = pytest.importorskip("rich.console")
    console = rich.Console(width=200, record=True, file=io.StringIO())
    console.print(found)
    assert "[red]" in console.export_text()
