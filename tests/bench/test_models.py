"""Whole models: the norms of each architecture, both modes measured, and the gain told beside its limit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import normkit as nk
from normkit.bench import models, nets
from normkit.bench.nets import Net
from normkit.bench.results import Document, Model, Versus
from normkit.bench.tables import models_table
from normkit.cli import main
from tests.bench.rows import MACHINE

TINY = Net("tiny decoder", nets.decoder, (64, 2), (1, 16))
MODEL = Model("ViT-S", (1, 3, 224, 224), "float32", 2, "training", 5, 12.0, 0.1, 1.05, 200, 100)


@pytest.fixture(scope="module")
def measured() -> list[Model]:
    return models.measure(TINY, "float32", 1, 0.0, (models.ACCELERATED,))


def test_both_modes_are_measured(measured: list[Model]) -> None:
    assert [model.mode for model in measured] == ["training", "inference"]
    for model in measured:
        assert model.rounds >= 5
        assert 0 < model.share < 1
        assert model.limit > 0
        assert list(model.contenders) == ["accelerated"]
    assert measured[0].peak > 0 < measured[0].fast_peak
    assert measured[1].peak == 0


SMALL: dict[str, tuple[Net, tuple[int, ...], int]] = {  # the output's shape, how many norms
    "decoder": (TINY, (1, 16, nets.VOCABULARY), 5),
    "vision": (Net("ViT", nets.vision_transformer, (64, 1), (2, 3, 32, 32)), (2, 4, 1000), 3),
    "speech": (Net("wav2vec", nets.speech_encoder, (64, 1), (1, 1, 3200)), (1, 9, 64), 4),
    "convnext": (Net("ConvNeXt", nets.convnext, (8, (1, 1)), (2, 3, 16, 16)), (2, 4, 1000), 5),  # type: ignore[arg-type]
    "unet": (Net("U-Net", nets.UNet, (4, 2), (2, 3, 16, 16)), (2, 2, 16, 16), 6),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_model_has_its_norms_and_all_are_replaced(name: str) -> None:
    net, shape, count = SMALL[name]
    torch.manual_seed(0)
    model, x = net.make(*net.arguments).eval(), net.input(torch.float32)
    with torch.no_grad():
        assert model(x).shape == shape
    record = nk.changes(nk.accelerate(model, x))
    assert (len(list(record)), len(record.kept)) == (count, 0)


def test_the_presets_name_each_model_of_the_comparison() -> None:
    for preset in nets.NETS.values():
        names = {net.name.split(",")[0] for net in preset}
        assert names == {"decoder", "ViT-S", "ConvNeXt-T", "wav2vec 2.0", "ResNet-50", "U-Net"}


def test_the_gain_is_told_where_there_is_one_to_have() -> None:
    fast = {"accelerated": Versus(1.04, 1.03, 1.05)}
    assert MODEL.reached is None  # nothing was measured
    assert Model(*MODEL.key, limit=1.02, contenders=fast).reached is None
    assert Model(*MODEL.key, limit=1.05, contenders=fast).reached == pytest.approx(0.8)


def test_the_table_and_the_file_hold_what_was_measured(measured: list[Model]) -> None:
    absent = Model(*MODEL.key, limit=1.05, absent={"compile": "no compiler"})
    document = Document(MACHINE, models=(*measured, absent))
    assert [model.key for model in Document.from_json(document.to_json()).models] == [m.key for m in document.models]
    text = models_table(document.models).text()
    assert "tiny decoder" in text
    assert text.splitlines()[-1].split().count("-") == 2  # neither contender
    newer = Document(MACHINE, models=(Model(*MODEL.key, limit=1.2),))
    assert [m.limit for m in document.merged(newer).models][-1] == 1.2


class Failing:
    def call(self, method: str) -> Any:
        raise RuntimeError("no C++ compiler\nand much more")


def test_a_compiler_that_fails_is_left_out_with_its_reason() -> None:
    subjects: Any = {"plain": object(), "compile": Failing()}
    assert models.without_failing(subjects) == {"compile": "RuntimeError: no C++ compiler"}
    assert list(subjects) == ["plain"]


def test_other_outputs_are_not_timed() -> None:
    y = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    models.verify(y, y * (1 + 1e-5), "float32")
    with pytest.raises(RuntimeError, match="not timed: the accelerated model's output differs by"):
        models.verify(y, y * 1.01, "float32")


def test_the_command_prints_a_table_for_each_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    def measure(net: Net, *arguments: Any) -> list[Model]:
        calls.append((net.name, *arguments))
        return [Model(net.name, net.shape, arguments[0], arguments[1], "training", absent={"compile": "no compiler"})]

    monkeypatch.setattr(models, "measure", measure)
    assert main(["bench", "--models", "--threads", "1", "--seconds", "0", "--dtype", "float32,bfloat16"]) == 0
    assert calls == [(net.name, dtype, 1, 0.0) for dtype in ("float32", "bfloat16") for net in nets.NETS["quick"]]
    printed = capsys.readouterr().out
    assert printed.count("norm share") == len(calls)
    assert "compile: no compiler" in printed


def test_models_and_families_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["layer_norm"], ["--cold"], ["--busy", "1"]):
        assert main(["bench", "--models", *arguments]) == 2
        assert "--models takes no families" in capsys.readouterr().err
