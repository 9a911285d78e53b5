"""Models that work in place on what they are given: example inputs and batches stay as the user gave them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.cases import EPS, MOMENTUM, gaussian, generator


class Shift(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(1.5).add_(1) if self.in_place else x * 1.5 + 1


class Foreign(nn.Module):
    """A batch norm that derives from no norm, by its running statistics."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("running_mean", torch.full((4,), 0.5))
        self.register_buffer("running_var", torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        mean, scale = self.running_mean.view(-1, 1, 1), (self.running_var.view(-1, 1, 1) + EPS).rsqrt()
        return x.sub_(mean).mul_(scale) if self.in_place else (x - mean) * scale


def net(in_place: bool) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            Shift(in_place), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, EPS, MOMENTUM), nn.ReLU(), nn.Conv2d(4, 4, 1),
            Foreign(in_place), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, EPS, MOMENTUM),
        )  # fmt: skip


def batches() -> list[Tensor]:
    g = generator(1)
    return [gaussian((5, 3, 4, 4), g).float() for _ in range(3)]


def adapted(model: nn.Module, given: list[Tensor]) -> None:
    """Each batch as a copy: what a model does to the input of a call of its own is the model's."""
    with nk.adapt(model, prior=4) as adaptation:
        model.seen = [adaptation(x.clone()) for x in given]


def recalibrated(model: nn.Module, given: list[Tensor], sequential: bool = False) -> None:
    model.train()
    nk.recalibrate(model, given, sequential=sequential, progress=False)
    model.seen = [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def changed(model: nn.Module, given: list[Tensor]) -> None:
    """By surgery, with what it verified."""
    others = nk.accelerate(model, given[0]), nk.fold(model, given[0])
    assert all(error.largest <= error.limit for other in others for error in nk.changes(other).errors)
    model.seen = [other(given[1].clone()) for other in others]


OPERATIONS = [
    changed,
    adapted,
    recalibrated,
    pytest.param(lambda m, x: recalibrated(m, x, sequential=True), id="recalibrated layer by layer"),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_model_that_works_in_place_gets_what_another_gets_and_the_inputs_stay(
    operation: Callable[[nn.Module, list[Tensor]], None],
) -> None:
    found = []
    for in_place in (False, True):
        model, given = net(in_place).eval(), batches()
        operation(model, given)
        found.append(model.seen)
        assert all(torch.equal(x, before) for x, before in zip(given, batches(), strict=True)), in_place
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs)
