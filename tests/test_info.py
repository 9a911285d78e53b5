"""What `normkit info` says of this machine is so."""

from __future__ import annotations

import pytest
import torch

import normkit as nk
from normkit.functional.choose import BACKENDS
from normkit.info import collect


@pytest.mark.parametrize("name", BACKENDS)
def test_a_path_is_called_available_where_it_can_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a GPU alone makes no path
    try:
        with nk.backend(name):
            nk.functional.layer_norm(torch.randn(4, 3), (3,))
        runs = True
    except RuntimeError:
        runs = False
    assert collect()[f"{name} path"].startswith("available") == runs
