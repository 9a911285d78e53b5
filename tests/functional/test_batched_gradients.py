"""A backward over a batch of gradients, or inside of a transform that began after the forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import normkit as nk
from tests.cases import EPS

X = torch.randn(4, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = torch.rand(4, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.7
LAYERS = {
    "batch": nk.BatchNorm2d(3, EPS, activation="tanh"),
    "batch, evaluation": nk.BatchNorm2d(3, EPS, activation="relu").eval(),
    "frozen": nk.FrozenBatchNorm2d(3, EPS),
    "sync": nk.SyncBatchNorm(3, EPS),
    "ghost": nk.GhostBatchNorm2d(3, EPS, virtual_batch_size=2),
    "renorm": nk.BatchRenorm2d(3, EPS, warm_up=(0, 0, 0)),
    "group": nk.GroupNorm(3, 3, EPS),
    "instance": nk.InstanceNorm2d(3, EPS, affine=True),
    "layer": nk.LayerNorm(5, EPS),
    "rms": nk.RMSNorm(5, EPS),
}
CALLS = {
    **{name: layer.double() for name, layer in LAYERS.items()},
    "residual": lambda x: LAYERS["batch"](torch.sin(x), residual=x),
    "mask": lambda x: LAYERS["batch"](x, mask=MASK),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def vectors(y: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(y), torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)])


@each_call
def test_a_batch_of_gradients_gives_the_gradients_of_each(call: Callable[..., Any] | nn.Module) -> None:
    x = X.clone().requires_grad_()
    y = call(x)
    (found,) = torch.autograd.grad(y, x, vectors(y), is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in vectors(y)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert not found.requires_grad


@each_call
def test_vmap_over_the_gradients_of_a_graph_that_is_there(call: Callable[..., Any] | nn.Module) -> None:
    x = X.clone().requires_grad_()
    y = call(x)
    found = torch.func.vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(vectors(y))
    expected = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in vectors(y)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


@each_call
def test_a_tangent_passes_through_the_backward(call: Callable[..., Any] | nn.Module) -> None:
    """The backward is linear in the gradient: its derivative along another gradient is that one's backward."""
    x = X.clone().requires_grad_()
    y = call(x)
    dy, tangent = vectors(y)
    with forward_ad.dual_level():
        (dual,) = torch.autograd.grad(y, x, forward_ad.make_dual(dy, tangent), retain_graph=True)
        found = forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(found, torch.autograd.grad(y, x, tangent)[0], rtol=1e-9, atol=1e-9)
