"""Masks, slices, renorm and synchronised norms by Triton's kernels under torch.compile: one graph, and eager's numbers;
see `batch_norm_cases.py`. Plain batch and group norm are compiled in their own files.

`nk.backend("triton")` raises where a norm would be composed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import normkit as nk
from tests.cases import EPS, MOMENTUM
from tests.kernels.interpreted.batch_norm_cases import make
from tests.kernels.interpreted.mask_cases import masked

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")  # numpy, which interprets

LAYERS: dict[str, Callable[[str | None], nn.Module]] = {
    "batch": lambda activation: nk.BatchNorm2d(6, EPS, MOMENTUM, activation=activation),
    "group": lambda activation: nk.GroupNorm(2, 6, EPS, activation=activation),
    "instance": lambda activation: nk.InstanceNorm2d(
        6, EPS, MOMENTUM, affine=True, track_running_stats=True, activation=activation
    ),
    "ghost": lambda activation: nk.GhostBatchNorm2d(6, EPS, MOMENTUM, virtual_batch_size=3, activation=activation),
    "renorm": lambda activation: nk.BatchRenorm2d(6, EPS, MOMENTUM, warm_up=(0, 1, 1), activation=activation),
    "sync": lambda activation: nk.SyncBatchNorm(6, EPS, MOMENTUM, activation=activation),
}
GRID = [  # layer, activation, layout, residual, mask; drawn so that each meets each other once
    ("batch", "relu", "channels_last", True, True), ("batch", None, "contiguous", True, True),
    ("batch", "silu", "transposed", False, True), ("group", "silu", "contiguous", True, True),
    ("group", None, "channels_last", False, True), ("instance", "relu", "contiguous", True, True),
    ("ghost", "relu", "contiguous", True, False), ("ghost", "silu", "channels_last", True, True),
    ("ghost", None, "transposed", False, False), ("renorm", "relu", "channels_last", True, False),
    ("renorm", None, "contiguous", True, True), ("sync", "relu", "contiguous", True, False),
    ("sync", None, "channels_last", True, True),
]  # fmt: skip


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled before; and a group of one rank, in which a layer gathers and adds up as among many."""
    monkeypatch.setattr("normkit.nn.sync_batch_norm.is_distributed", lambda group: True)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    dist.destroy_process_group()


@pytest.mark.parametrize(("name", "activation", "layout", "residual", "hides"), GRID, ids=str)
def test_a_compiled_layer_is_one_graph_with_the_same_numbers(
    name: str, activation: str | None, layout: str, residual: bool, hides: bool, fresh: None
) -> None:
    """Two batches, so that the running statistics that the first one moved are used."""
    layer, twin = (LAYERS[name](activation) for _ in range(2))
    found = []
    for norm in (torch.compile(layer, fullgraph=True, backend="aot_eager"), twin):
        results: list[Tensor | None] = []
        for seed in range(2):
            case, dy = make((7, 6, 3, 5), layout=layout, residual=residual, seed=seed, mean=2.0)
            if hides:
                masked(case, dy, seed=seed)
            leaves = [t.detach().requires_grad_() for t in (case.x, case.residual) if t is not None]
            options: dict[str, Any] = {"residual": leaves[1]} if residual else {}
            with nk.backend("triton"):
                y = norm(leaves[0], mask=case.mask, **options)
                y.backward(dy)
            if layout != "transposed":  # which eager mode makes contiguous, and a graph keeps
                assert y.stride() == leaves[0].stride()
            results += [y.detach(), *(leaf.grad for leaf in leaves)]
        found.append(results)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    torch.testing.assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()), rtol=1e-6, atol=1e-6)
    for (parameter, actual), (_, expected) in zip(layer.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(actual.grad, expected.grad), parameter


def test_running_statistics_stay_where_a_compiled_batch_has_no_value(fresh: None) -> None:
    case, _ = make((4, 6, 3, 5))
    nothing = torch.zeros(4, 3, 5, dtype=torch.bool)
    for name in ("batch", "instance", "ghost", "renorm"):
        layer = LAYERS[name](None)
        before = {key: buffer.clone() for key, buffer in layer.named_buffers()}
        with nk.backend("triton"):
            y = torch.compile(layer, fullgraph=True, backend="aot_eager")(case.x, mask=nothing)
        assert y.eq(0).all()
        for key, buffer in layer.named_buffers():
            if key.startswith("running"):
                assert torch.equal(buffer, before[key]), (name, key)
