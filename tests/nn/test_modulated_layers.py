"""Every layer takes `modulate` in its call: scale * layer(x) + shift, whatever the layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import normkit as nk

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm2d(4),
    "small": lambda: nk.BatchNorm2d(4, affine=False, track_running_stats=False),
    "domain": lambda: nk.DomainBatchNorm2d(4, domains=2),
    "frozen": lambda: nk.FrozenBatchNorm2d(4),
    "ghost": lambda: nk.GhostBatchNorm2d(4, virtual_batch_size=3),
    "renorm": lambda: nk.BatchRenorm2d(4, warm_up=(0, 0, 0)),
    "sync": lambda: nk.SyncBatchNorm(4),
    "group": lambda: nk.GroupNorm(2, 4),
    "instance": lambda: nk.InstanceNorm2d(4, affine=True),
    "tracking": lambda: nk.InstanceNorm2d(4, track_running_stats=True),
    "layer2d": lambda: nk.LayerNorm2d(4),
    "frn": lambda: nk.FilterResponseNorm(4, threshold=False),
    "grn": lambda: nk.GlobalResponseNorm(4),
    "lazy": lambda: nk.LazyBatchNorm2d(),
    "layer": lambda: nk.LayerNorm(5),
    "rms": lambda: nk.RMSNorm(5),
}


@pytest.mark.parametrize("trains", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", LAYERS)
def test_scale_and_shift_follow_the_layer(name: str, layout: torch.memory_format, trains: bool) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(6, 4, 5, 5, generator=g).contiguous(memory_format=layout)
    sizes = (6, 5) if name in ("layer", "rms") else (6, 4)
    scale, shift = torch.randn(sizes, generator=g), torch.randn(sizes, generator=g)
    layer = LAYERS[name]()
    layer(x, 0) if name == "domain" else layer(x)  # running statistics that are not the first ones
    layer.train(trains)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=g)
    beside = [t.reshape(6, 1, 1, 5) if len(sizes) and sizes[1] == 5 else t.reshape(6, 4, 1, 1) for t in (scale, shift)]
    with nk.domain(1):
        state = {key: value.clone() for key, value in layer.state_dict().items()}
        plain = layer(x)
        layer.load_state_dict(state)
        found = layer(x, modulate=(scale, shift))
    torch.testing.assert_close(found, plain * beside[0] + beside[1], rtol=1e-5, atol=2e-5)
    assert found.stride() == plain.stride()


@pytest.mark.parametrize("kind", [nk.InstanceNorm1d, nk.InstanceNorm2d])
def test_an_instance_norm_without_a_batch_axis_takes_one_of_channels(kind: type[nn.Module]) -> None:
    x = torch.randn(4, 6) if kind is nk.InstanceNorm1d else torch.randn(4, 6, 6)
    scale, shift = torch.randn(4), torch.randn(4, *[1] * (x.dim() - 1))
    layer = kind(4)
    torch.testing.assert_close(layer(x, modulate=(scale, shift)), layer(x) * scale.reshape(shift.shape) + shift)
    torch.testing.assert_close(layer(x, modulate=(None, shift)), layer(x) + shift)


def test_a_transformer_block_of_dit_trains() -> None:
    """adaLN-Zero: shift, scale and gate of a condition, 1 + scale given."""
    torch.manual_seed(0)
    norm, condition = nk.LayerNorm(16, elementwise_affine=False, eps=1e-6), nn.Linear(8, 48)
    x, c = torch.randn(2, 5, 16, requires_grad=True), torch.randn(2, 8)
    shift, scale, gate = condition(c).chunk(3, dim=1)
    y = x + gate.unsqueeze(1) * norm(x, modulate=(1 + scale, shift))
    plain = nn.functional.layer_norm(x, (16,), eps=1e-6)
    expected = x + gate.unsqueeze(1) * (plain * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad(y.square().sum(), [x, condition.weight], retain_graph=True)
    for a, e in zip(found, torch.autograd.grad(expected.square().sum(), [x, condition.weight]), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


class Conditional(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm, self.condition = nk.BatchNorm2d(4, activation="relu", **options), nn.Linear(3, 8)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        scale, shift = self.condition(c).chunk(2, dim=1)
        y: torch.Tensor = self.norm(x, modulate=(1 + scale, shift))
        return y


@pytest.mark.parametrize("named", [True, False], ids=["named", "positional"])
def test_fold_keeps_a_modulated_norm(named: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nk.BatchNorm2d(4)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(x)
            return self.norm(y, modulate=(scale, None)) if named else self.norm(y, None, None, None, (scale, None))

    net, given = Net().eval(), (torch.randn(2, 3, 5, 5), torch.randn(2, 4))
    folded = nk.fold(net, given, verify=False)
    (change,) = nk.changes(folded).entries
    assert (change.action, change.reason) == ("kept", "it is called with a modulation, which changes from call to call")
    assert torch.equal(folded(*given), net(*given))


def test_statistics_of_a_modulated_layer_are_set_and_adapted() -> None:
    net = Conditional()
    batches = [{"x": torch.randn(5, 4, 3, 3) + i, "c": torch.randn(5, 3)} for i in range(3)]
    nk.recalibrate(net, batches, progress=False)
    values = torch.cat([batch["x"] for batch in batches])
    torch.testing.assert_close(net.norm.running_mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(net.norm.running_var, values.var((0, 2, 3)))
    alike = Conditional(track_running_stats=False)
    with nk.adapt(net, prior=0):
        torch.testing.assert_close(net(**batches[0]), alike.eval()(**batches[0]))
