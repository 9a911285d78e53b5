"""An activation given to one call stands in place of the layer's own, and leaves the layer as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import normkit as nk

LAYERS: dict[str, Callable[[str | None], nn.Module]] = {
    "batch": lambda own: nk.BatchNorm2d(4, eps=3e-4, activation=own),
    "frozen": lambda own: nk.FrozenBatchNorm2d(4, eps=3e-4, activation=own),
    "ghost": lambda own: nk.GhostBatchNorm2d(4, eps=3e-4, virtual_batch_size=3, activation=own),
    "renorm": lambda own: nk.BatchRenorm2d(4, eps=3e-4, activation=own),
    "sync": lambda own: nk.SyncBatchNorm(4, eps=3e-4, activation=own),
    "group": lambda own: nk.GroupNorm(2, 4, eps=3e-4, activation=own),
    "instance": lambda own: nk.InstanceNorm2d(4, eps=3e-4, activation=own),
    "layer": lambda own: nk.LayerNorm(5, eps=3e-4, activation=own),
    "layer2d": lambda own: nk.LayerNorm2d(4, eps=3e-4, activation=own),
    "rms": lambda own: nk.RMSNorm(5, eps=3e-4, activation=own),
}


@pytest.mark.parametrize("own", [None, "relu"])
@pytest.mark.parametrize("name", LAYERS)
def test_it_stands_in_place_of_the_layers_own(name: str, own: str | None) -> None:
    x = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    given, plain = LAYERS[name](own), LAYERS[name](None)
    expected = torch.tanh(plain(x))
    for activation in ("tanh", nn.Tanh()):
        torch.testing.assert_close(given(x, activation=activation), expected)
        plain(x)
    assert given.activation == own
    torch.testing.assert_close(given(x), plain(x) if own is None else plain(x).relu())
    with pytest.raises(ValueError, match="activation 'nosuch' is not known"):
        given(x, activation="nosuch")
