"""The code that a reader is given to paste runs, and its last line says what the text promises."""

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk

TEXT = (Path(nk.__file__).parent / "learn" / "sections" / "my_problem.html").read_text(encoding="utf-8")
CODE = {
    name: unescape(code)
    for name, code in re.findall(r'data-answer="(\w+)".*?<pre tabindex="0">(.*?)</pre>', TEXT, re.DOTALL)
}


def convolutional() -> dict[str, Any]:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nk.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, y = torch.randn(16, 1, 8, 8), torch.randint(8, (16,))
    return {"model": model, "x": x, "y": y, "loss": nn.functional.cross_entropy, "batches": [x, x + 1], "c": 8}


def sequential() -> dict[str, Any]:
    return {"bn": nk.BatchNorm1d(4), "x": torch.randn(3, 4, 10), "lengths": torch.tensor([10, 4, 7])}


def accumulated() -> dict[str, Any]:
    given = convolutional()
    return {**given, "bn": given["model"][1], "micro_batches": [(given["x"], given["y"])] * 3}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "eval": convolutional,
    "small": convolutional,
    "shift": convolutional,
    "padding": sequential,
    "accumulate": accumulated,
    "deploy": convolutional,
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_code_of_a_symptom_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    exec(CODE[name], {"torch": torch, "nn": nn, "nk": nk, **GIVEN[name]()})
    printed = capsys.readouterr().out.splitlines()
    assert printed
    if name == "accumulate":
        assert printed[-1] == "1"
    if name == "deploy":
        assert float(re.findall(r"\d[\d.e-]*", printed[-1])[0]) < 1e-5


def test_every_symptom_has_its_code() -> None:
    assert set(CODE) == set(GIVEN)
    assert re.findall(r"\{\{choice symptom (.*)", TEXT)[0].split() == list(GIVEN)
