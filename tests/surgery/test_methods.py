"""Every public method of an accelerated model computes what it did, on models of other libraries; and the way back.

`nk.accelerate` compares forward alone: it calls no other method of a model, which may do anything. That they compute
what they did follows from what is changed, and is held here on their real users: layers stay plain, activations stay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from normkit.surgery import accelerate, changes, convert

from . import foreign
from .models import close, outputs, randomized, same_state, state

Method = Callable[[Any, Tensor], Any]
SAME = 1e-8  # float64, a hundred layers deep

FEATURES: dict[str, Method] = {"features": lambda m, x: m.features(x)}
TIMM: dict[str, Method] = {
    "forward_features": lambda m, x: m.forward_features(x),
    "forward_head": lambda m, x: m.forward_head(m.forward_features(x)),
    "pre_logits": lambda m, x: m.forward_head(m.forward_features(x), pre_logits=True),
    "intermediates": lambda m, x: m.forward_intermediates(x),
}
VISION = {
    "resnet18": {
        "stem": lambda m, x: m.maxpool(m.relu(m.bn1(m.conv1(x)))),
        "one layer": lambda m, x: m.layer1(m.maxpool(m.bn1(m.conv1(x)))),
        "the parts of a block": lambda m, x: m.layer1[0].bn2(m.layer1[0].conv2(m.layer1[0].bn1(m.conv1(x)))),
    },
    "densenet121": FEATURES,
    "mobilenet_v3_small": FEATURES,
    "efficientnet_b0": FEATURES,
    "vgg11_bn": FEATURES,
    "segmentation.deeplabv3_resnet50": {"backbone": lambda m, x: m.backbone(x)},
}
# tests of all of these take minutes: the others repeat what the first ones show, for other blocks
NIGHTLY = (
    "efficientnet_b0",
    "vgg11_bn",
    "segmentation.deeplabv3_resnet50",
    "regnetx_002",
    "convnext_atto",
    "levit_128s",
)
MODELS: dict[str, tuple[Callable[[str], nn.Module], int, dict[str, Method]]] = {
    **{name: (foreign.torchvision_model, 64, methods) for name, methods in VISION.items()},
    "mobilenetv3_small_050": (foreign.timm_model, 64, TIMM),
    "resnet10t": (foreign.timm_model, 64, TIMM),
    "regnetx_002": (foreign.timm_model, 64, TIMM),
    "convnext_atto": (foreign.timm_model, 64, TIMM),
    "levit_128s": (foreign.timm_model, 224, {name: TIMM[name] for name in ("forward_features", "forward_head")}),
}
models = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] if name in NIGHTLY else []) for name in MODELS]
)


def made(name: str) -> tuple[nn.Module, Tensor, dict[str, Method]]:
    build, size, methods = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomized(build(name)).double().eval()
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, x, methods


def found(method: Method, model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(method(model, x.clone())) if isinstance(leaf, Tensor)]


@models
def test_public_methods_compute_what_they_did_and_the_way_back_is_whole(name: str) -> None:
    model, x, methods = made(name)
    expected = {key: found(method, model, x) for key, method in methods.items()}
    before, forward = state(model), outputs(model, x)
    result = accelerate(model, x)
    assert changes(result).of("accelerate").replaced
    for key, method in methods.items():
        close(found(method, result, x), expected[key], SAME)
    held = {id(module) for module in result.modules()}
    back = convert(result, "torch")
    assert {id(module) for module in result.modules()} == held  # a copy went back
    assert [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    assert [str(module) for module in back.modules()] == [str(module) for module in model.modules()]
    same_state(back, before)
    close(outputs(back, x), forward, 0)
    for key, method in methods.items():
        close(found(method, back, x), expected[key], 0)
    modes = [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in back.modules()] == modes


class Several(nn.Module):
    """Methods that forward does not call, and one that it does, over the same children."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, eps=3e-4), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)) + x)

    def encode(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def twice(self, x: Tensor) -> Tensor:
        return self(self(x))

    def delete_everything(self, x: Tensor) -> Tensor:
        raise AssertionError("nobody may call this")

    @property
    def dangerous(self) -> Tensor:
        raise AssertionError("nobody may read this")


def test_no_other_method_is_called_and_all_compute_what_they_did() -> None:
    model = randomized(Several()).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = accelerate(model, x)
    assert changes(result)["bn"].reason.startswith("fused")
    for method in (lambda m, x: m.encode(x), lambda m, x: m.twice(x), lambda m, x: copy.deepcopy(m).encode(x)):
        close(found(method, result, x), found(method, model, x), 1e-11)
