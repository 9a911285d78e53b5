"""torch.load(weights_only=True): states as they are; whole layers, models and reports once their classes are named."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from tests.ecosystem.nets import OURS, assert_same_state, images, net

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm2d(8, eps=3e-4, activation="relu"),
    "batch, module": lambda: nk.BatchNorm2d(8, activation=nn.LeakyReLU(0.2)),
    "frozen": lambda: nk.FrozenBatchNorm2d(8, eps=3e-4),
    "ghost": lambda: nk.GhostBatchNorm2d(8, virtual_batch_size=3),
    "renorm": lambda: nk.BatchRenorm2d(8),
    "sync": lambda: nk.SyncBatchNorm(8),
    "group": lambda: nk.GroupNorm(2, 8, activation="silu"),
    "instance": lambda: nk.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "layer": lambda: nk.LayerNorm(6),
    "layer2d": lambda: nk.LayerNorm2d(8),
    "rms": lambda: nk.RMSNorm(6),
}
REPORTS: dict[str, Callable[[], Any]] = {
    "changes": lambda: nk.changes(OURS["accelerated"]()),
    "recalibration": lambda: nk.recalibrate(net(nn), [images()]),
    "comparison": lambda: nk.compare(net(nn), net()),
    "moments": lambda: nk.Moments.of(images(), (0, 2, 3)),
}
needs_names = pytest.mark.skipif(
    not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"),
    reason="torch says which names a checkpoint asks for since 2.6 or 2.5",
)
KNOWN = {"normkit", "torch", "collections", "builtins", "tests"}  # what a user can name: torch's, ours, his own


def saved(value: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def named(file: io.BytesIO) -> list[Any]:
    """What a user is told to allow, imported from where its name says."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    file.seek(0)
    found = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert module.partition(".")[0] in KNOWN, name
        found.append(getattr(__import__(module, fromlist=[attribute]), attribute))
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_needs_nothing(name: str) -> None:
    layer = LAYERS[name]()
    state = torch.load(saved(layer.state_dict()), weights_only=True)
    assert list(state) == list(layer.state_dict())
    LAYERS[name]().load_state_dict(state)


@needs_names
@pytest.mark.parametrize("name", LAYERS)
def test_a_whole_layer_needs_the_classes_that_torch_names(name: str) -> None:
    layer, x = LAYERS[name](), torch.randn(4, 8, 6, 6)
    layer(x)
    file = saved(layer)
    allowed = named(file)
    assert type(layer) in allowed
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(file, weights_only=True)
    file.seek(0)
    with torch.serialization.safe_globals(allowed):
        loaded = torch.load(file, weights_only=True)
    assert type(loaded) is type(layer)
    assert repr(loaded) == repr(layer)
    assert torch.equal(loaded.eval()(x), layer.eval()(x))


@needs_names
def test_a_model_of_our_layers_needs_our_classes_where_torchs_needs_its_own() -> None:
    ours, theirs = (named(saved(net(kit))) for kit in (nk, nn))

    def names(kinds: list[Any]) -> set[str]:
        return {kind.__name__ for kind in kinds}

    assert names(ours) == names(theirs)


@needs_names
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_in_a_checkpoint_needs_its_own_classes(name: str) -> None:
    report = REPORTS[name]()
    file = saved({"report": report, "state": net().state_dict()})
    with torch.serialization.safe_globals(named(file)):
        loaded = torch.load(file, weights_only=True)
    assert type(loaded["report"]) is type(report)
    assert str(loaded["report"]) == str(report)


def test_a_rewritten_model_is_code_and_its_state_is_not() -> None:
    """The forward of an accelerated model travels as source: only a load that may run code gives it back."""
    model = OURS["accelerated"]()
    file = saved(model)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(file, weights_only=True)
    plain = net(nn)
    plain.load_state_dict(torch.load(saved(model.state_dict()), weights_only=True))
    assert_same_state(plain, model)
