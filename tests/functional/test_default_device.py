"""A default device is for new tensors of the user: what a norm makes for itself lies where its input does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import normkit as nk
from tests.cases import EPS, MOMENTUM, gaussian, generator
from tests.nn.formulas import CASES


def step(name: str, activation: str, masked: bool, device: str, order: int) -> list[Tensor]:
    """Output, gradients of the first or second order, and buffers."""
    case = CASES[name]
    layer = case.layer()
    x, residual, mask = case.draw()
    x, residual = x.requires_grad_(), residual if residual is None else residual.requires_grad_()
    given = {key: v for key, v in (("residual", residual), ("mask", mask if masked else None)) if v is not None}
    leaves = [t for t in (x, residual, *layer.parameters()) if t is not None and t.requires_grad]
    with torch.device(device):
        y = layer(x, activation=activation, **given)
        found = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=order == 2)
        if order == 2:
            found = torch.autograd.grad(sum(g.square().sum() for g in found), leaves, allow_unused=True)
    return [t.detach() for t in (y, *found, *layer.buffers()) if t is not None]


@pytest.mark.parametrize("order", [1, 2], ids=["first", "second"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_the_same_step(name: str, activation: str, masked: bool, order: int) -> None:
    for ours, expected in zip(
        *(step(name, activation, masked, device, order) for device in ("meta", "cpu")), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_moments_that_were_deferred_merge() -> None:
    layer, twin = (nk.InstanceNorm1d(3, EPS, MOMENTUM, track_running_stats=True) for _ in range(2))
    x = gaussian((8, 3, 5), generator(1)).float()
    for norm, device in ((layer, "meta"), (twin, "cpu")):
        with torch.device(device), nk.deferred_statistics(norm):
            norm(x[:3])
            norm(x[3:])
    torch.testing.assert_close(layer.running_var, twin.running_var)
