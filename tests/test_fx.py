"""torch.fx sees normkit's layers and functions as single nodes, wherever it sees torch's so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import normkit as nk
from tests.surgery.foreign import torchvision_model

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm2d(4, eps=3e-4, activation="relu"),
    "frozen": lambda: nk.FrozenBatchNorm2d(4, eps=3e-4),
    "ghost": lambda: nk.GhostBatchNorm2d(4, eps=3e-4, virtual_batch_size=3),
    "renorm": lambda: nk.BatchRenorm2d(4, eps=3e-4),
    "sync": lambda: nk.SyncBatchNorm(4, eps=3e-4),
    "group": lambda: nk.GroupNorm(2, 4, eps=3e-4),
    "instance": lambda: nk.InstanceNorm2d(4, eps=3e-4),
    "layer": lambda: nk.LayerNorm(5, eps=3e-4),
    "layer2d": lambda: nk.LayerNorm2d(4, eps=3e-4),
    "rms": lambda: nk.RMSNorm(5, eps=3e-4),
}


def images(seed: int = 0) -> Tensor:
    return torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_one_node_that_computes_as_the_layer(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), LAYERS[name]()).eval()
    graph = fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes] == ["input", "0", "1", "output"]
    assert type(graph.get_submodule("1")) is type(model[1])
    assert torch.equal(graph(images()), model(images()))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nk.BatchNorm2d(4, momentum=0.3, activation="relu")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(self.conv(x), residual=x, mask=mask)


def test_residual_and_mask_are_arguments_of_the_node() -> None:
    model, mask = Block(), torch.rand(6, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.7
    graph = fx.symbolic_trace(model)
    (node,) = [node for node in graph.graph.nodes if node.target == "norm"]
    assert node.op == "call_module"
    assert {name: str(value) for name, value in node.kwargs.items()} == {"residual": "x", "mask": "mask"}
    again = fx.symbolic_trace(graph)
    assert torch.equal(again.eval()(images(), mask), model.eval()(images(), mask))


@pytest.mark.parametrize("name", ["batch_norm", "group_norm", "layer_norm", "rms_norm", "add_layer_norm"])
def test_a_function_is_one_node_and_the_generated_code_runs(name: str) -> None:
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "batch_norm": lambda x: nk.functional.batch_norm(x * 2, None, None, training=True, eps=3e-4, activation="relu"),
        "group_norm": lambda x: nk.functional.group_norm(x * 2, 2, eps=3e-4, residual=x),
        "layer_norm": lambda x: nk.functional.layer_norm(x * 2, (5,), eps=3e-4),
        "rms_norm": lambda x: nk.functional.rms_norm(input=x * 2, normalized_shape=(5,), eps=3e-4),
        "add_layer_norm": lambda x: nk.functional.add_layer_norm(x * 2, x, (5,), eps=3e-4)[0],
    }

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return calls[name](x)

    graph = fx.symbolic_trace(Model())
    (node,) = [n for n in graph.graph.nodes if getattr(n.target, "__module__", "") == "normkit.functional"]
    assert node.target is getattr(nk.functional, name)
    assert torch.equal(graph(images()), Model()(images()))
    assert "normkit" in graph.code or name in graph.code


@pytest.mark.filterwarnings("ignore")  # the library's own deprecations are not what is tested
@pytest.mark.parametrize("change", ["convert", "freeze", "accelerate"])
def test_torchvisions_feature_extractor_takes_changed_models(change: str) -> None:
    model, x = torchvision_model("resnet18").float().eval(), torch.randn(2, 3, 33, 33)
    from torchvision.models.feature_extraction import create_feature_extractor

    changed = {
        "convert": lambda: nk.convert(model, "batch"),
        "freeze": lambda: nk.freeze(model),
        "accelerate": lambda: nk.accelerate(model, x),
    }[change]()
    expected = create_feature_extractor(model, ["layer1", "layer3.1"])(x)
    found = create_feature_extractor(changed, ["layer1", "layer3.1"])(x)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
