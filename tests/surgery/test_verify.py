"""A change that is seen only in gradients, in buffers, or with another batch size is undone."""

import pytest
import torch
from torch import nn

from normkit.surgery import accelerate, changes

from .models import randomized
from .test_accelerate import FUSED, Block

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Watching(nn.Module):
    """It does something else where its child's forward was rewritten."""

    def __init__(self, other):
        super().__init__()
        self.child, self.other = Block(FUSED["relu module"]), other
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        y = self.child(x) * self.scale
        return self.other(self, y) if "forward" in self.child.__dict__ else y


def moves_a_buffer(model, y):
    model.seen += 1
    return y


OTHERS = {
    "gradient of the input": lambda m, y: y.detach() * m.scale,
    "gradient of a parameter": lambda m, y: y + (m.scale * 0.5 - (m.scale * 0.5).detach()),
    "a buffer": moves_a_buffer,
    "another batch size": lambda m, y: y if len(y) == 4 else y * 2,
    "an error for another batch size": lambda m, y: y if len(y) == 4 else y[:, :, 0].view_as(y),
    "the outputs": lambda m, y: y * 1.3,
}


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_differs_is_undone(other, mode):
    model = randomized(Watching(lambda m, y: other(m, y) if m.training == mode else y))
    entry = changes(accelerate(model, X))["child.bn"]
    assert entry.action == "replaced"
    assert entry.reason.startswith("not fused: fusion undone: ")


def test_an_example_of_one_size_only_is_enough():
    model = randomized(nn.Sequential(Block(FUSED["relu module"]), nn.Unflatten(0, (4, 1))))
    assert changes(accelerate(model, X))["0.bn"].reason.startswith("fused")


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_gradients_that_are_zero_but_for_rounding_undo_nothing(kind):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1 if kind is nn.BatchNorm2d else (1, 2)), kind(3, affine=False))
    for x in (X, X[:2]):
        assert changes(accelerate(model, x))["1"].action == "replaced"


def test_an_input_that_is_changed_in_place_is_differentiated():
    model = randomized(nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(3, eps=3e-4), nn.ReLU(inplace=True)))
    assert changes(accelerate(model, X))["1"].reason.startswith("fused")


def test_gradients_that_amplify_rounding_undo_nothing():
    """A batch norm over two rows gives 1 and -1, and its gradient is what rounding left."""
    torch.manual_seed(0)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    deep = [layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Hardswish())]
    model = nn.Sequential(*deep, *pool, nn.BatchNorm1d(3, affine=False, eps=1e-12))
    result = accelerate(model, X[:2] * 1e-3 + 1)
    assert {entry.action for entry in changes(result)} == {"replaced"}
    assert changes(result)["1"].reason.startswith("fused")
