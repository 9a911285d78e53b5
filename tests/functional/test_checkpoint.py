"""Activation checkpoints run a layer's forward twice a step; its running statistics move once, as without them."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from tests.cases import EPS, MOMENTUM, gaussian, generator
from tests.tolerances import assert_same

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm1d(3, EPS, MOMENTUM),
    "batch_cumulative": lambda: nk.BatchNorm1d(3, EPS, None),
    "batch_relu": lambda: nk.BatchNorm1d(3, EPS, MOMENTUM, activation="relu"),
    "ghost": lambda: nk.GhostBatchNorm1d(3, EPS, MOMENTUM, virtual_batch_size=2),
    "instance": lambda: nk.InstanceNorm1d(3, EPS, MOMENTUM, affine=True, track_running_stats=True),
    "instance_cumulative": lambda: nk.InstanceNorm1d(3, EPS, None, track_running_stats=True),
    "renorm": lambda: nk.BatchRenorm1d(3, EPS, MOMENTUM, warm_up=(0, 0, 0)),
    "sync": lambda: nk.SyncBatchNorm(3, EPS, MOMENTUM),
}


def run(layer: nn.Module, reentrant: bool | None, steps: int = 3) -> tuple[list[Tensor], list[Tensor]]:
    """(gradients, state) after steps that each train a batch of 5; reentrant=None: no checkpoint."""
    g = generator(2)
    gradients = []
    for _ in range(steps):
        x = gaussian((5, 3, 4), g, mean=1.0).requires_grad_()
        weights = gaussian((5, 3, 4), g)
        y = layer(x) if reentrant is None else checkpoint(layer, x, use_reentrant=reentrant)
        (y * weights).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    gradients += [p.grad for p in layer.parameters() if p.grad is not None]
    return gradients, [b.double() for b in layer.state_dict().values()]


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved_tensor_hooks"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_checkpointed_layer_is_the_plain_layer(make: Callable[[], nn.Module], reentrant: bool) -> None:
    """Bit for bit: outputs' gradients, running statistics and the count of batches."""
    plain, checkpointed = run(make().double(), None), run(make().double(), reentrant)
    for what, ours, theirs in zip(("gradients", "state"), plain, checkpointed, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same(b, a, what)


def test_torchs_layer_moves_twice() -> None:
    """Why this file exists. When this fails, PyTorch has been repaired."""
    layer = nn.BatchNorm1d(3).double()
    run(layer, False, steps=1)
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 2


def test_checkpoints_within_a_checkpoint_move_once() -> None:
    inner, outer = nk.BatchNorm1d(3), nk.BatchNorm1d(3)

    def block(x: Tensor) -> Tensor:
        return outer(checkpoint(inner, x, use_reentrant=False))

    x = torch.randn(5, 3, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    for layer in (inner, outer):
        assert layer.num_batches_tracked is not None
        assert layer.num_batches_tracked.item() == 1


def test_an_ordinary_backward_between_forwards_does_not_stop_the_count() -> None:
    layer = nk.BatchNorm1d(3)
    for step in range(1, 4):
        layer(torch.randn(5, 3, requires_grad=True)).sum().backward()
        assert layer.num_batches_tracked is not None
        assert layer.num_batches_tracked.item() == step


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "saved_tensor_hooks"])
def test_renorm_recomputes_each_micro_batch_with_its_own_correction(reentrant: bool) -> None:
    """Two forwards before two backwards: the running statistics have moved twice when the first is recomputed."""

    def gradients(checkpointed: bool) -> list[Tensor]:
        layer, g = nk.BatchRenorm1d(3, momentum=0.5, warm_up=(0, 0, 0)).double(), generator(1)
        xs = [gaussian((6, 3), g, mean=m, std=1 + m).requires_grad_() for m in (0.5, 1.0, 1.5)]
        ys = [checkpoint(layer, x, use_reentrant=reentrant) if checkpointed else layer(x) for x in xs]
        sum((y**3).sum() for y in ys).backward()
        return [x.grad for x in xs if x.grad is not None]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert_same(a, b)


def test_renorm_never_takes_another_batchs_correction_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches differ by little; past the batches that are remembered a warning says what happens."""
    monkeypatch.setattr(importlib.import_module("normkit.functional.batch_renorm"), "IN_FLIGHT", 2)
    torch.manual_seed(0)
    layer = nk.BatchRenorm1d(3, eps=2e-3, momentum=0.3, warm_up=(0, 0, 0)).double()
    batches = [torch.randn(40_000, 3, dtype=torch.float64).requires_grad_() for _ in range(3)]
    outputs = [checkpoint(layer, x, use_reentrant=False) for x in batches]
    with pytest.warns(RuntimeWarning, match="none of the last 2 of this layer"):
        outputs[0].square().sum().backward()
    outputs[2].square().sum().backward()  # remembered: no warning
