"""What `normkit info` says of this machine is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import normkit as nk
from normkit.functional.choose import BACKENDS
from normkit.info import TRITON_NORMS, collect
from normkit.kernels import native, older_torch, triton
from tests.kernels.native_isa import needs_native


@pytest.mark.parametrize("name", sorted({*BACKENDS} - {"triton"}))
def test_a_path_is_called_available_where_it_can_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a GPU alone makes no path
    try:
        with nk.backend(name):
            nk.functional.layer_norm(torch.randn(4, 3), (3,))
        runs = True
    except RuntimeError:
        runs = False
    assert collect()[f"{name} path"].startswith("available") == runs


@pytest.mark.skipif(not hasattr(torch.library, "triton_op"), reason="torch.library.triton_op is of torch 2.6")
def test_the_triton_path_is_told_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not without Triton, not without a device, not on ROCm before somebody has tried it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if not triton.INTERPRETS and triton.INSTALLED:
        assert collect()["triton path"] == "not available: torch finds no CUDA device"
        assert collect()["on cuda"] == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton, "INSTALLED", True)
    assert collect()["triton path"].startswith("available")
    assert collect()["on cuda"] == f"triton ({TRITON_NORMS}), aten, composed"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "not been tried" in collect()["on cuda"]
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(triton, "INSTALLED", False)
    assert collect()["triton path"] == "not available: Triton is not installed: pip install 'normkit[triton]'"
    assert collect()["on cuda"] == "aten, composed"


@needs_native
def test_a_torch_that_shows_no_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    count = str(torch.get_num_threads())
    assert collect()["threads"] == count
    monkeypatch.setattr(older_torch, "addresses", lambda library, names: None)
    assert collect()["threads"] == f"{count}; the native core has one: this torch shows no parallel loop"


README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(("edge", "tier"), [("exchange table", 0), ("C shim", 1), ("", 2)])
def test_the_tier_is_called_as_readme_calls_it(edge: str, tier: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (rows,) = re.findall(r"\| tier \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README.read_text(encoding="utf-8"))
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows.splitlines()]
    assert len(names) == 3
    monkeypatch.setattr(native, "edge", lambda: edge)
    assert collect()["tier"].startswith(names[tier])
