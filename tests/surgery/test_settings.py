"""What a trace has fixed is looked at, flags and children: where they differ, the class's forward runs."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk

from .models import close, randomized

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.downsample: nn.Module | None = None
        self.register_parameter("gain", None)
        self.register_buffer("shift", None)
        self.scale, self.skip, self._kind, self.act = 2.0, True, "relu", torch.relu
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1)])
        self.table = nn.ModuleDict({"a": nn.ModuleList([nn.Conv2d(3, 3, 1)])})
        self.seen = 0  # no method looks at it

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        for layer in (*self.layers, *(layer for layers in self.table.values() for layer in layers)):
            y = layer(y)
        y = self._ended(self.act(self.bn2(y)) * self.scale)
        return y + (x if self.downsample is None else self.downsample(x)) if self.skip else y

    def _ended(self, y: Tensor) -> Tensor:
        y = y if self.gain is None else y * self.gain
        y = y if self.shift is None else y + self.shift
        return getattr(torch, self._kind)(y)


def set_to(name: str, value: object) -> Callable[[Any], None]:
    return lambda model: setattr(model, name, value)


def append(model: Any) -> None:
    model.layers.append(nn.Hardtanh(-0.1, 0.1))


def append_deep(model: Any) -> None:
    model.table["a"].append(nn.Hardtanh(-0.1, 0.1))


def add_a_key(model: Any) -> None:
    model.table["b"] = nn.ModuleList([nn.Hardtanh(-0.1, 0.1)])


CHANGES: dict[str, Callable[[Any], None]] = {
    "a number": set_to("scale", 3.0),
    "a flag": set_to("skip", False),
    "a name in a helper": set_to("_kind", "tanh"),
    "a function": set_to("act", torch.sigmoid),
    "a child that was None": set_to("downsample", nn.Hardtanh(-0.1, 0.1)),
    "a parameter that was None": set_to("gain", nn.Parameter(torch.full((3, 1, 1), 3.0))),
    "a buffer that was None": set_to("shift", torch.ones(3, 1, 1)),
    "a layer of a list": append,
    "a layer of a list in a dict": append_deep,
    "a list of a dict": add_a_key,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_later_counts(change: Callable[[Any], None]) -> None:
    model = randomized(Flagged()).eval()
    result = nk.accelerate(model, X)
    assert all(entry.reason.startswith("fused") for entry in nk.changes(result))
    for twin in (copy.deepcopy(result), pickle.loads(pickle.dumps(result)), result):
        expected = copy.deepcopy(model)
        close([twin(X)], [model(X)], 1e-5)
        assert twin.forward.holds(twin)
        twin.seen += 1
        assert twin.forward.holds(twin)
        change(twin), change(expected)
        close([twin(X)], [expected(X)], 1e-5)
        assert not torch.allclose(expected(X), model(X), atol=1e-2)


class Headed(nn.Module):
    """It ends with a norm, and a ReLU follows outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.doubled = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), False

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.bn(x + x if self.doubled else x)


def test_in_a_module_that_ends_with_the_norm_too() -> None:
    model = randomized(nn.Sequential(Headed(), nn.ReLU())).eval()
    result = nk.accelerate(model, X)
    assert nk.changes(result)["0.bn"].reason.startswith("fused")
    result[0].doubled = model[0].doubled = True
    close([result(X)], [model(X)], 1e-5)


class Backwards(nn.Sequential):
    """nn.Sequential's forward goes by __iter__."""

    def __iter__(self) -> object:  # type: ignore[override]
        return reversed(self._modules.values())


def test_a_sequential_with_an_order_of_its_own_keeps_it() -> None:
    model = randomized(Backwards(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))).eval()
    result = nk.accelerate(model, X)
    close([result(X)], [model(X)], 1e-5)
    assert "Backwards" in nk.changes(result)["1"].reason
