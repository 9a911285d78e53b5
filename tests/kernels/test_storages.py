"""The core knows how large storages are where libtorch tells it, and does without where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import normkit as nk
from normkit.kernels import core as loading
from normkit.kernels import older_torch, storages
from tests.kernels.native_isa import needs_native

pytestmark = needs_native


def test_this_torch_tells_the_sizes_of_storages() -> None:
    found = storages.shim()
    assert found is not None
    assert found["at"] == older_torch.offset_of_tensor()
    assert all(found.values())


def raising(*_: Any) -> Any:
    raise RuntimeError("the at::Tensor inside of a Python tensor is not found")


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (older_torch, "library", lambda: None),
        (older_torch, "addresses", lambda *_: None),
        (older_torch, "offset_of_tensor", raising),
        (storages, "_FACTS", storages._FACTS[::-1]),  # what is told is another thing than was asked for
        (storages, "_FACTS", ("aoti_torch_get_storage_size", "aoti_torch_get_no_such_thing")),
    ],
    ids=["no library", "no functions", "no tensor", "another fact", "a name that is not there"],
)
def test_what_is_not_proved_is_not_used(module: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, value)
    assert storages.shim() is None


@pytest.fixture
def reload(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Gives the core what it needs of torch once more, and again when the test is over."""

    def load() -> None:
        core, problem = loading.load()
        assert core is not None, problem

    yield load
    monkeypatch.undo()
    load()


def test_a_torch_that_does_not_tell_is_computed_on(reload: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    expected = nk.functional.group_norm(x, 3, eps=3e-4)
    monkeypatch.setattr(storages, "shim", lambda: None)
    reload()
    assert torch.equal(nk.functional.group_norm(x, 3, eps=3e-4), expected)
