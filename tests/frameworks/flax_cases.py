"""Flax: modules of the real library, trained a little, on the CPU. `test_real_libraries` runs this file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.frameworks.facts import FACTS
from tests.frameworks.nets import images

jax = pytest.importorskip("jax")
flax = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
pytestmark = pytest.mark.filterwarnings("ignore")  # what JAX warns of itself


class Twin(nn.Module):
    """The network below, in PyTorch, channels first, its norms called as there."""

    def __init__(self) -> None:
        super().__init__()
        self.BatchNorm_0 = nk.BatchNorm2d(6)
        self.BatchNorm_1 = nn.BatchNorm2d(6)
        self.GroupNorm_0 = nn.GroupNorm(3, 6)
        self.LayerNorm_0 = nk.LayerNorm2d(6)
        self.RMSNorm_0 = nk.RMSNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.LayerNorm_0(self.GroupNorm_0(self.BatchNorm_1(torch.relu(self.BatchNorm_0(x)))))
        return self.RMSNorm_0(y.movedim(1, -1)).movedim(-1, 1)


def last(x: Tensor) -> Any:
    return jax.numpy.asarray(x.movedim(1, -1).numpy())


def first(y: Any) -> Tensor:
    return torch.from_numpy(np.array(y)).movedim(-1, 1)


def drawn(tree: Any) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree_util.tree_map(lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape) * 0.3 + 0.8), tree)


def linen() -> Any:
    class Net(flax.Module):
        @flax.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = flax.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = flax.BatchNorm(use_running_average=not train, use_scale=False)(flax.relu(x))
            x = flax.LayerNorm()(flax.GroupNorm(num_groups=3)(x))
            return flax.RMSNorm()(x)

    return Net()


def trained(net: Any) -> Any:
    variables = net.init(jax.random.PRNGKey(0), last(images()), train=False)
    variables = {**variables, "params": drawn(variables["params"])}
    for seed in range(4):
        _, moved = net.apply(variables, last(images(seed)), train=True, mutable=["batch_stats"])
        variables = {**variables, **moved}
    return variables


def test_linen_variables_evaluate_as_there() -> None:
    net, x = linen(), images(9)
    variables = trained(net)
    twin = Twin()
    report = nk.load_norm_state(twin, variables, "flax", momentum={"BatchNorm_0": 0.9})
    assert report.missing == report.unused == ()
    with torch.no_grad():
        expected = first(net.apply(variables, last(x), train=False))
        torch.testing.assert_close(twin.eval()(x), expected, rtol=1e-4, atol=1e-4)
    assert (twin.BatchNorm_0.eps, twin.GroupNorm_0.eps) == (1e-5, 1e-6)
    assert (twin.BatchNorm_0.momentum, twin.BatchNorm_1.momentum) == (pytest.approx(0.1), pytest.approx(0.01))
    assert not twin.BatchNorm_1.weight.requires_grad


def test_linen_training_goes_on_alike() -> None:
    net, x = linen(), images(9)
    variables = trained(net)
    twin = Twin()
    nk.load_norm_state(twin, variables, "flax", momentum={"BatchNorm_0": 0.9})
    _, moved = net.apply(variables, last(x), train=True, mutable=["batch_stats"])
    twin.train()(x)
    expected = torch.from_numpy(np.array(moved["batch_stats"]["BatchNorm_0"]["mean"]))
    torch.testing.assert_close(twin.BatchNorm_0.running_mean, expected, rtol=1e-4, atol=1e-5)


def test_the_order_is_that_of_the_numbers() -> None:
    ones = np.ones(2, "float32")
    names = [f"BatchNorm_{i}" for i in (0, 1, 10, 2)]  # as a sorted dict has them
    state = {
        "params": {name: {"scale": ones * i, "bias": ones} for i, name in enumerate(names)},
        "batch_stats": {name: {"mean": ones, "var": ones} for name in names},
    }
    model = nn.Sequential(*(nn.BatchNorm2d(2) for _ in names))
    report = nk.load_norm_state(model, state, "flax", names="order")
    assert [layer.origin for layer in report] == ["BatchNorm_0", "BatchNorm_1", "BatchNorm_2", "BatchNorm_10"]


def test_the_state_of_an_nnx_module() -> None:
    class Net(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.bn = nnx.BatchNorm(6, momentum=0.9, rngs=nnx.Rngs(0))
            self.ln = nnx.LayerNorm(6, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.ln(self.bn(x))

    theirs, x = Net(), images(9)
    theirs.train()
    for seed in range(4):
        theirs(last(images(seed)))
    theirs.eval()
    mine = nn.ModuleDict({"bn": nn.BatchNorm2d(6), "ln": nk.LayerNorm2d(6)})
    report = nk.load_norm_state(mine, nnx.state(theirs), "flax")
    assert report.missing == report.unused == ()
    with torch.no_grad():
        y = mine.eval().ln(mine.bn(x))
    torch.testing.assert_close(y, first(theirs(last(x))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm"])
def test_the_defaults_of_the_table_are_linens(kind: str) -> None:
    family = kind.removesuffix("Norm").lower()
    assert getattr(flax, kind).epsilon == FACTS["flax"].eps[family]
    if family == "batch":
        assert flax.BatchNorm.momentum == FACTS["flax"].keeps
