"""The report says what was done, in numbers that can be checked, and survives JSON."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.statistics import Recalibration, distance
from tests.statistics.nets import data, net


def test_json_round_trip():
    model = net()
    model[2].eval()
    with torch.no_grad():
        model[0].running_var[1] = float("inf")
    report = nk.recalibrate(model, data())
    assert Recalibration.from_json(report.to_json()) == report
    json.loads(report.to_json(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    assert report["0"].largest is None
    assert report["0"].channel == 1


def test_counts_are_of_values_and_calls():
    report = nk.recalibrate(net(), data((4, 7, 2)))
    assert [(r.name, r.type, r.values, r.calls) for r in report] == [
        ("0", "BatchNorm2d", 13 * 36, 3),
        ("2", "BatchNorm2d", 13 * 16, 3),
    ]
    assert report.batches == 3


def test_distance_is_that_of_old_and_new_statistics_in_standard_deviations():
    layer = nn.BatchNorm1d(3)
    (x,) = [torch.tensor([[0.0, 3.0, 0.0], [0.0, 5.0, 8.0]]).repeat(500, 1)]
    x[:, 0] = torch.tensor([-1.0, 1.0]).repeat(500)  # what the layer already has: mean 0, variance 1
    report = nk.recalibrate(layer, [x])[""]
    # channel 1: mean 4, std 1 -> 4; channel 2: mean 4, std 4 -> sqrt(4^2 + 3^2)/4 = 1.25; all up to 1/1000 (unbiased)
    assert report.channel == 1
    assert report.largest == pytest.approx(4.0, rel=1e-3)
    assert report.distance == pytest.approx(((4.0**2 + 1.25**2) / 3) ** 0.5, rel=1e-3)


def test_a_second_pass_finds_nothing_to_do():
    model = net()
    nk.recalibrate(model, data())
    for layer in nk.recalibrate(model, data()):
        assert layer.largest < 1e-6  # rounding of the buffers to float32


def test_distance_is_zero_only_for_equal_statistics():
    mean, var = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
    assert distance(mean, var, mean, var, 1e-5).eq(0).all()
    assert distance(mean, 4 * var, mean, var, 0.0).tolist() == [1.0, 1.0]
    assert distance(mean + 1, var, mean, var, 0.0).tolist() == [1.0, 0.5]


def test_text_names_every_layer_and_the_sum():
    model = nn.Sequential(nn.BatchNorm2d(3), nk.FrozenBatchNorm2d(3))
    text = str(nk.recalibrate(model, data()))
    assert "1      FrozenBatchNorm2d" in text
    assert "left alone: frozen" in text
    assert text.endswith("1 recalibrated in one pass from 3 batches (population), 1 left alone")


def test_rich_shows_hostile_names_as_they_are():
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=200)
    model = nn.Module()
    model.add_module("[red]x[/]", nn.BatchNorm2d(3))
    model.forward = lambda x: model.get_submodule("[red]x[/]")(x)
    console.print(nk.recalibrate(model, data()))
    assert "[red]x[/]" in console.file.getvalue()


def test_nothing_is_printed_where_there_is_no_terminal(capfd):
    nk.recalibrate(net(), data())
    assert capfd.readouterr() == ("", "")


def test_a_bar_is_shown_on_a_terminal_and_works_without_rich(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    nk.recalibrate(net(), data())
    assert "recalibrate" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    nk.recalibrate(net(), data())
    nk.recalibrate(net(), data(), progress=False)
    assert capfd.readouterr() == ("", "")


def test_importing_it_loads_neither_rich_nor_dynamo():
    code = (
        "import sys, torch; before = set(sys.modules); import normkit; "
        "print([m for m in ('rich', 'numpy', 'torch._dynamo') if m in sys.modules and m not in before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
