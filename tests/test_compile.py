"""torch.compile of every norm without a graph break: training, evaluation, changing batch sizes, cumulative averages.

The default backend of these tests is aot_eager, which captures forward and backward as inductor gets them without
waiting for a C++ compiler; the nightly preset runs inductor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.functional import choose
from normkit.nn import domain_call
from tests.cases import EPS, MOMENTUM
from tests.conformance.compare import randomize

LAYERS: dict[str, Any] = {
    "batch": lambda: nk.BatchNorm2d(6, EPS, MOMENTUM),
    "batch_cumulative": lambda: nk.BatchNorm2d(6, EPS, None),
    "batch_leaky_relu": lambda: nk.BatchNorm2d(6, EPS, MOMENTUM, activation=nn.LeakyReLU(0.3)),
    "instance": lambda: nk.InstanceNorm2d(6, EPS, MOMENTUM, affine=True, track_running_stats=True),
    "instance_cumulative": lambda: nk.InstanceNorm2d(6, EPS, None, affine=True, track_running_stats=True),
    "group": lambda: nk.GroupNorm(3, 6, EPS, activation="silu"),
    "layer": lambda: nk.LayerNorm(5, EPS),
    "rms": lambda: nk.RMSNorm(5, EPS),
    "layer_2d": lambda: nk.LayerNorm2d(6, EPS),
}
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.nightly)]
MODES = {"train": True, "eval": False}
# inductor and Dynamo warn about themselves (deprecated internals, TF32, lru_cache)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def example(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 6, 4, 5, generator=torch.Generator().manual_seed(seed))


def step(call: Any, layer: nn.Module, x: Tensor, **extras: Tensor) -> list[Tensor]:
    """Output, gradients and buffers of one step."""
    leaf = x.clone().requires_grad_()
    y = call(leaf, **extras)
    dy = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    gradients = torch.autograd.grad(y, [leaf, *layer.parameters()], dy)
    return [y, *gradients, *(b.clone() for b in layer.buffers())]


# Layers without running statistics run the same graph in both modes: one mode covers them.
CASES = [(name, mode) for name in LAYERS for mode in MODES if mode == "train" or name in ("batch", "instance")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "mode"), CASES, ids=["-".join(case) for case in CASES])
def test_whole_graphs_compute_what_eager_does_at_every_batch_size(name: str, mode: str, backend: str) -> None:
    eager = LAYERS[name]().train(MODES[mode])
    randomize(eager)
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for i, n in enumerate((3, 5)):
        for a, b in zip(step(compiled, layer, example(n, i)), step(eager, eager, example(n, i)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # float64 sums in another order, rounded once


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["batch_leaky_relu", "instance", "group"])
def test_residual_and_mask_stay_in_one_graph(name: str, backend: str) -> None:
    eager = LAYERS[name]()
    randomize(eager)
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    extras = {"residual": example(3, 7), "mask": torch.rand(3, 4, 5) > 0.3}
    for a, b in zip(step(compiled, layer, example(3), **extras), step(eager, eager, example(3), **extras), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_switching_between_training_and_evaluation_recompiles() -> None:
    eager = LAYERS["batch"]()
    layer = copy.deepcopy(eager)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for training in (True, False, True):
        layer.train(training)
        eager.train(training)
        torch.testing.assert_close(compiled(example(3)), eager(example(3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(layer.state_dict()), dict(eager.state_dict()))
    assert layer.num_batches_tracked == 2


def test_a_backend_asked_for_is_seen_by_the_compiled_graph() -> None:
    layer = LAYERS["batch"]()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(example(3))
    with nk.backend("triton"), pytest.raises(Exception, match=r"cannot serve this call|Observed exception"):
        compiled(example(3))


def traces_generators() -> bool:
    """Whether a context manager that is a generator may be entered within a full graph, on torch 2.8 and newer."""

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    def run(x: Tensor) -> Tensor:
        with nothing():
            return x + 1

    try:
        torch.compile(run, fullgraph=True, backend="eager")(torch.ones(1))
    except torch._dynamo.exc.Unsupported:
        return False
    return True


@pytest.mark.parametrize("block", [lambda: nk.backend("composed"), lambda: nk.domain(1)], ids=["backend", "domain"])
def test_a_block_may_be_entered_within_a_graph(block: Any) -> None:
    if not traces_generators():
        pytest.skip("this torch traces no context manager that is a generator")
    layer = nk.DomainBatchNorm2d(6, EPS, MOMENTUM, domains=2)
    twin = copy.deepcopy(layer)

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        with nk.domain(0), block():
            return layer(x)

    y = torch.compile(run, fullgraph=True, backend="aot_eager")(layer, example(3))
    torch.testing.assert_close(y, run(twin, example(3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(layer.state_dict()), dict(twin.state_dict()))
    assert not choose._entered
    assert choose._requested is domain_call.current() is None


def test_a_non_finite_batch_moves_nothing_in_a_graph() -> None:
    layer = LAYERS["batch"]()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(example(3))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    poisoned = example(3)
    poisoned[0, 1, 0, 0] = torch.inf
    compiled(poisoned)
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)
