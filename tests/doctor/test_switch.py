"""The exact statistics that layers are switched to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.doctor.exact import SETTLED, Exact, apart
from normkit.doctor.switch import Switch
from tests.doctor.nets import Chain, Residual, images, seeded


def measured(model: nn.Module, batches) -> Switch:
    switch = Switch(model, batches, None, 0, lambda: None)
    switch.measure(lambda *_: None)
    return switch


def worst(model: nn.Module, exact: dict[str, Exact]) -> float:
    """How far the model's running statistics are from these, at the layer where that is most."""
    return max(apart(model.get_submodule(n), *(model.get_submodule(n)._buffers[k] for k in
               ("running_mean", "running_var")), found) for n, found in exact.items())  # fmt: skip


@pytest.mark.parametrize("make", [Residual, Chain])
def test_they_are_those_of_evaluation_layer_by_layer(make):
    """Batches of three contrasts: what a batch's own statistics hide from the layers after."""
    batches = [x * (1 + 2 * (i % 3)) for i, (x, _) in enumerate(images(12, 4))]
    model = seeded(make).eval()
    switch = measured(model, batches)
    found = {layer.name: switch.exact[layer.module] for layer in switch.layers}
    sequential = seeded(make).eval()
    nk.recalibrate(sequential, batches, sequential=True, progress=False)
    assert worst(sequential, found) < SETTLED
    parallel = seeded(make).eval()
    nk.recalibrate(parallel, batches, progress=False)
    assert worst(parallel, found) > 3 * SETTLED


def test_layers_come_in_the_order_of_the_dataflow():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.never = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.late(self.early(x))

    assert [layer.name for layer in measured(Backwards(), images(2)).layers] == ["early", "late"]


def test_a_layer_without_enough_values_cannot_be_switched():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(108)).eval()
    assert measured(model, [x for x, _ in images(1, 1)]).layers == []
    assert len(measured(model, [x for x, _ in images(3, 1)]).layers) == 1  # three values in all


def test_values_that_are_no_numbers_are_not_measured():
    model = seeded(Chain).eval()
    batches = images(3)
    batches[1][0][0, 0, 0, 0] = float("nan")
    switch = measured(model, batches)
    assert len(switch.layers) == 3
    assert all(found.mean.isfinite().all() and found.var.isfinite().all() for found in switch.exact.values())


def test_statistics_that_are_no_numbers_are_infinitely_far():
    layer = nn.BatchNorm2d(2)
    exact = Exact(torch.zeros(2), torch.ones(2))
    assert apart(layer, layer.running_mean, layer.running_var, exact) == 0
    assert apart(layer, layer.running_mean, torch.tensor([1.0, float("nan")]), exact) == float("inf")
    assert apart(layer, layer.running_mean, torch.tensor([1.0, -1.0]), exact) == float("inf")
