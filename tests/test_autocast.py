"""Under torch.autocast every norm returns the dtype that torch's returns; docs/autocast.md says which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

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


def skip_promotion(name: str, dtype: torch.dtype) -> None:
    """An older torch's RMS norm of a half-precision input by a float32 weight is float32, autocast or not."""
    one = torch.ones(1)
    if name == "rms_norm" and dtype != one.dtype and F.rms_norm(one.to(dtype), (1,), one).dtype == one.dtype:
        pytest.skip(f"rms_norm of torch {torch.__version__} returns the wider dtype of input and weight")


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch's rms_norm, about its speed
@each_dtype
@each_norm
def test_autocast_on_the_cpu_gives_torchs_dtype_and_values(name: str, dtype: torch.dtype) -> None:
    skip_promotion(name, dtype)
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


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """Switched on where this torch has an autocast for the device, which need not be here."""
    if not torch.amp.is_autocast_available(device):
        yield
        return
    torch.set_autocast_enabled(device, True)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, False)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("device", sorted(_autocast.WIDENING_DEVICES))
@each_dtype
@each_norm
def test_the_rule_of_an_accelerator_is_torchs(name: str, device: str, dtype: torch.dtype) -> None:
    """No accelerator is needed: fake tensors have the device's rules, and dtypes."""
    skip_promotion(name, dtype)
    with FakeTensorMode(), torch.device(device):
        x = torch.empty(3, 6, 6, dtype=dtype)
        try:
            F.rms_norm(x, x.shape[-1:])
        except RuntimeError as error:  # torch 2.6 asks mps itself
            pytest.skip(str(error))
        with autocast(device):
            ours, theirs, widened = call(nk.functional, name, x), call(F, name, x), _autocast.widen(name, x)
        assert _autocast.widen(name, x) is x  # it is switched off
    assert ours.dtype == theirs.dtype == widened.dtype == _autocast.output_dtype(name, device, dtype)


def test_the_docs_table_is_the_codes() -> None:
    """The table is of a torch that knows RMS norm, and mps."""
    if not (_autocast.widens("rms_norm", "cuda") and _autocast.widens("batch_norm", "mps")):
        pytest.skip(f"the autocast of torch {torch.__version__} has fewer rules than the table shows")
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
