"""Small models and the values that make a wrong fold visible."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from normkit.model.dataflow import call_with


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Running statistics and affine parameters of every norm away from 0 and 1: with the initial ones a fold that
    forgot the
    mean, or the bias, would still pass."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name in ("running_mean", "running_var", "weight", "bias"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and tensor.dim() == 1:
                low, width = (0.5, 1.0) if name in ("running_var", "weight") else (-0.3, 0.6)
                tensor.data.copy_(torch.rand(tensor.shape, generator=random) * width + low)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state, to show that the model is bit-identical later."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def outputs(model: nn.Module, example_inputs: object) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(call_with(model, example_inputs)) if isinstance(leaf, Tensor)]


def close(got: list[Tensor], expected: list[Tensor], relative: float, joint: bool = False) -> None:
    """|got - expected| <= relative * max|expected|, tensor by tensor; NaN fails.

    joint: the maximum over all of them, for gradients: that of a bias in front of a norm is zero but for rounding.
    """
    assert len(got) == len(expected)
    got, expected = [t.detach() for t in got], [t.detach() for t in expected]
    largest = max(float(theirs.abs().max()) for theirs in expected)
    for ours, theirs in zip(got, expected, strict=True):
        gap, scale = float((ours - theirs).abs().max()), largest if joint else float(theirs.abs().max())
        assert gap <= relative * scale, f"differs by {gap:.3g}, the largest value is {scale:.3g}"


def same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


class Residual(nn.Module):
    """conv, norm, the one shared ReLU, conv, norm, add, the ReLU again: the block of a ResNet."""

    def __init__(self, channels: int, inplace: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


def residual_net() -> nn.Sequential:
    stem = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
