"""Derivatives with a graph where one operand has been made from another: a layer called twice, a residual block.

The composed path differentiates plain operations; the fused one must count each way once, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.cases import EPS

MASK = torch.rand(4, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.7
LAYERS = {
    "batch": lambda **options: nk.BatchNorm2d(3, EPS, **options),
    "batch, evaluation": lambda **options: nk.BatchNorm2d(3, EPS, **options).eval(),
    "sync": lambda **options: nk.SyncBatchNorm(3, EPS, **options),
    "ghost": lambda **options: nk.GhostBatchNorm2d(3, EPS, virtual_batch_size=2, **options),
    "renorm": lambda **options: nk.BatchRenorm2d(3, EPS, warm_up=(0, 0, 0), **options),
    "group": lambda **options: nk.GroupNorm(3, 3, EPS, **options),
    "instance": lambda **options: nk.InstanceNorm2d(3, EPS, affine=True, **options),
    "layer": lambda **options: nk.LayerNorm(5, EPS, **options),
    "rms": lambda **options: nk.RMSNorm(5, EPS, **options),
}
CHAINS = {
    "a layer called twice": lambda layer, x: layer(torch.sin(layer(x))),
    "a residual that the input is made of": lambda layer, x: layer(torch.sin(x), residual=x),
    "both": lambda layer, x: layer(torch.sin(y := layer(x, residual=x)), residual=y),
    "the input itself": lambda layer, x: layer(x, residual=x),
    "a residual under a mask": lambda layer, x: layer(torch.sin(x), residual=x, mask=MASK),
}
CASES = [
    pytest.param(layer, chain, id=f"{name}: {what}")
    for name, layer in LAYERS.items()
    for what, chain in CHAINS.items()
    if "layer called" in what or name not in ("layer", "rms")
]


def derivatives(layer: nn.Module, chain: object, path: str | None) -> list[Tensor]:
    """First derivatives with a graph, and the derivatives of their squares."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 4, 5, generator=random, dtype=torch.float64).requires_grad_()
    leaves = [x, *layer.parameters()]
    if path is None:
        y = chain(layer, x)
    else:
        with nk.backend(path):
            y = chain(layer, x)
    first = torch.autograd.grad((y * torch.cos(y)).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return [derivative.detach() for derivative in (*first, *second)]


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize(("make", "chain"), CASES)
def test_each_way_is_counted_once(make: Callable[..., Any], chain: Callable[..., Any], activation: str | None) -> None:
    torch.manual_seed(0)
    layer = make(activation=activation).double()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    found, expected = (derivatives(copy.deepcopy(layer), chain, path) for path in (None, "composed"))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("with_graph", [False, True])
@pytest.mark.parametrize("activation", [None, "leaky_relu", "silu"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("layer", "rms")])
def test_a_residual_has_no_gradient_under_the_mask(name: str, activation: str | None, with_graph: bool) -> None:
    residual = torch.randn(4, 3, 4, 5, requires_grad=True)
    layer = LAYERS[name](activation=activation)
    y = layer(torch.randn(4, 3, 4, 5), residual=residual, mask=MASK)
    (dresidual,) = torch.autograd.grad(y, residual, torch.ones_like(y), create_graph=with_graph)
    assert (dresidual.masked_select(~MASK[:, None]) == 0).all()
    assert (dresidual.masked_select(MASK[:, None]) != 0).all()
