"""Under torch.autocast every norm returns the dtype that torch's returns; docs/autocast.md says which."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import normkit as nk
from normkit.functional import _autocast
from tests.cases import EPS

DOCS = Path(__file__).parents[1] / "docs" / "autocast.md"
NORMS = ["batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
each_norm = pytest.mark.parametrize("name", NORMS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def call(functions: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """The norm with float32 parameters, as in a module under autocast."""
    weight, bias = torch.linspace(0.5, 1.5, 6), torch.linspace(-1, 1, 6)
    if name == "batch_norm":
        return functions.batch_norm(x, None, None, weight, bias, True, eps=EPS)
    if name == "instance_norm":
        return functions.instance_norm(x, None, None, weight, bias, eps=EPS)
    if name == "group_norm":
        return functions.group_norm(x, 3, weight, bias, EPS)
    if name == "layer_norm":
        return functions.layer_norm(x, (6,), weight, bias, EPS)
    return functions.rms_norm(x, (6,), weight, EPS)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's rms_norm, about its speed
@each_dtype
@each_norm
def test_autocast_on_the_cpu_gives_torchs_dtype_and_values(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = call(nk.functional, name, x), call(F, name, x)
    assert ours.dtype == theirs.dtype == _autocast.output_dtype(name, "cpu", dtype)
    torch.testing.assert_close(ours, theirs)


def test_a_mixed_model_trains_under_autocast_with_float32_statistics() -> None:
    norms = nk.BatchNorm2d(6, EPS, activation="relu"), nk.GroupNorm(3, 6, EPS)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), *norms)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert model[1].running_mean.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@each_norm
def test_the_accelerators_rule_is_the_one_in_torchs_headers(name: str) -> None:
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    if not header.is_file():
        pytest.skip("this torch ships no headers")
    (listed,) = re.findall(r"#define AT_FORALL_FP32\(_\)(.*?)\n\n", header.read_text(), re.DOTALL)
    assert (f"_({name})" in listed) == (name in _autocast.WIDENED)


@each_norm
def test_widening_follows_the_device_and_the_switch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator is needed: the meta device stands in for one."""
    x = torch.ones(2, 4, dtype=torch.bfloat16, device="meta")
    monkeypatch.setattr(_autocast, "WIDENING_DEVICES", frozenset({"meta"}))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "meta")
    wide = torch.float32 if name in _autocast.WIDENED else torch.bfloat16
    assert _autocast.widen(name, x).dtype == wide
    assert _autocast.widen(name, x.double()).dtype == torch.float64
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    assert _autocast.widen(name, x).dtype == torch.bfloat16


def test_the_docs_table_is_the_codes() -> None:
    assert table() in DOCS.read_text(), "docs/autocast.md is out of date; its table must be:\n" + table()


def table() -> str:
    """The table of docs/autocast.md: the output's dtype for each norm, device and input dtype."""
    devices = ["cpu", *sorted(_autocast.WIDENING_DEVICES)]
    rows = ["| norm | input | " + " | ".join(devices) + " |", "|---|---|" + "---|" * len(devices)]
    for name in NORMS:
        for label, dtype in DTYPES.items():
            found = [str(_autocast.output_dtype(name, d, dtype)).removeprefix("torch.") for d in devices]
            rows.append(f"| {name} | {label} | " + " | ".join(found) + " |")
    return "\n".join(rows)
