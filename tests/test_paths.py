"""The table of `normkit info`: what `choose` answers for typical calls, and what a call of that kind then does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import paths
from normkit.functional import road
from tests.kernels.native_isa import needs_native


@pytest.fixture(scope="module")
def rows() -> list[paths.Row]:
    """In a process of its own: what other tests have compiled here decides what is compiled again."""
    program = "import json; from normkit import paths; print(json.dumps(paths.rows()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True)
    return [paths.Row(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def answer(rows: list[paths.Row], norm: str, called: str) -> tuple[str, str]:
    (row,) = [row for row in rows if (row.norm, row.called) == (norm, called)]
    return row.path, row.reason


@needs_native
def test_it_tells_the_ways_of_calling_apart(rows: list[paths.Row]) -> None:
    if answer(rows, "batch norm", "torch.compile")[1] == "does not run here: UserError":
        pytest.skip("Dynamo of this torch (2.6) traces no spec that was made outside of the graph")
    assert [answer(rows, "batch norm", way)[0] for way in ("eager", "torch.compile", "torch.export", "torch.func")] == [
        "native", "native", "exported", "composed",
    ]  # fmt: skip
    assert "operator" in answer(rows, "batch norm", "torch.compile")[1]
    assert answer(rows, "batch norm, evaluation", "torch.compile")[0] == "composed"
    assert answer(rows, "ghost batch norm", "torch.export")[1] == "PyTorch has no ghost_batch_norm"
    assert answer(rows, "group norm, masked", "eager")[0] == "native"
    assert answer(rows, "group norm, masked", "torch.compile") == ("composed", "a mask is given")
    assert all("float16" in row.tensors and "channels_last" in row.tensors for row in rows)


@needs_native
def test_the_short_cut_of_the_road_is_what_choose_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The road asks `in_core` before `choose`: both have to say native for the same calls."""
    layers = [
        nk.BatchNorm2d(6, eps=3e-3), nk.BatchNorm2d(6, eps=3e-3).eval(), nk.GroupNorm(3, 6, eps=3e-3),
        nk.InstanceNorm2d(6, eps=3e-3, track_running_stats=True), nk.LayerNorm(5, eps=3e-3), nk.RMSNorm(5, eps=3e-3),
        nk.FrozenBatchNorm2d(6, eps=3e-3),
    ]  # fmt: skip
    asked: list[str] = []

    def spy(norm: road.NormSpec, operands: road.Operands) -> tuple[str, str]:
        asked.append(norm.name)
        return choose(norm, operands)

    choose = road.choose
    monkeypatch.setattr(road, "choose", spy)
    for dtype in paths.DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(4, 6, 5, 5).to(dtype).contiguous(memory_format=layout)
            for layer in layers:
                parameters_fit = dtype != torch.float64
                layer.to(torch.float32 if parameters_fit else torch.float64)
                spec, operands = captured(monkeypatch, layer, x)
                assert choose(spec, operands) == ("native", "as it is")
                layer(x)
    assert asked == [], "these took the long way"


def captured(monkeypatch: pytest.MonkeyPatch, layer: torch.nn.Module, x: Tensor) -> tuple[road.NormSpec, road.Operands]:
    """The spec and the verified operands of a layer's call."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(road, "is_eager", lambda: False)
        patch.setattr(road, "choose", lambda norm, operands: seen.append((norm, operands)) or ("composed", ""))
        layer(x)
    return seen[0]
