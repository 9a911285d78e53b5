"""An activation given to one call stands in place of the layer's own, and leaves the layer as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import normkit as nk

LAYERS: dict[str, Callable[[str | nn.Module | None], nn.Module]] = {
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


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU("tanh")], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_an_activation_module_that_somebody_listens_to_is_called(name: str, activation: nn.Module) -> None:
    x = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    layer, heard = LAYERS[name](activation), []
    expected = layer(x)
    handle = activation.register_forward_hook(lambda module, inputs, output: heard.append(inputs[0]) or output * 2)
    torch.testing.assert_close(layer(x), expected * 2)
    torch.testing.assert_close(heard[0], LAYERS[name](None)(x))
    handle.remove()
    activation.forward = lambda input: input * 3  # type: ignore[method-assign]  # as users do
    torch.testing.assert_close(layer(x), LAYERS[name](None)(x) * 3)
    del activation.forward
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["batch", "group", "instance", "layer2d"])
def test_a_module_with_a_value_for_each_channel_gets_the_channels_on_axis_1(name: str, masked: bool) -> None:
    x = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    slopes = nn.PReLU(4)
    slopes.weight.data = torch.tensor([0.1, 0.2, 0.3, 0.4])
    mask = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(3)) > 0.3 if masked else None
    plain, layer = LAYERS[name](None), LAYERS[name](slopes)
    torch.testing.assert_close(layer(x, mask=mask), slopes(plain(x, mask=mask)))
