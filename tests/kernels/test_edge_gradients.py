"""Gradients that no kernel can read (a subclass, without memory, under a mode): torch's operations take them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import normkit as nk
from normkit.kernels.core import core
from tests.kernels.native_isa import needs_native

pytestmark = needs_native

SHAPE = (4, 3, 8, 8)
LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "batch": lambda lib: lib.BatchNorm2d(3),
    "batch_eval": lambda lib: lib.BatchNorm2d(3).eval(),
    "group": lambda lib: lib.GroupNorm(3, 3),
    "layer": lambda lib: lib.LayerNorm(8),
    "rms": lambda lib: lib.RMSNorm(8),
}


class Wrapper(Tensor):
    """Has no memory of its own: each operation runs on the tensor inside."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        unwrap = lambda value: value.inner if isinstance(value, Wrapper) else value  # noqa: E731  # for tree_map
        return function(*tree_map(unwrap, arguments), **tree_map(unwrap, keywords or {}))


class Counting(TorchDispatchMode):
    """Sees each operation of torch, as profilers do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.seen += 1
        return function(*arguments, **(keywords or {}))


def gradients(layer: str, library: Any, around: Any = None, hook: Any = None) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(SHAPE, generator=g).requires_grad_(), torch.randn(SHAPE, generator=g)
    module = LAYERS[layer](library)
    y = module(x)
    if hook is not None:
        y.register_hook(hook)
    if around is None:
        return list(torch.autograd.grad(y, [x, *module.parameters()], dy))
    with around:
        return list(torch.autograd.grad(y, [x, *module.parameters()], dy))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_gradient_of_a_subclass_without_memory(layer: str) -> None:
    found = [g.inner if isinstance(g, Wrapper) else g for g in gradients(layer, nk, hook=Wrapper)]
    torch.testing.assert_close(found, gradients(layer, nn), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_backward_under_a_mode_of_fake_tensors_is_fake(layer: str) -> None:
    found = gradients(layer, nk, FakeTensorMode(allow_non_fake_inputs=True))
    for fake, real in zip(found, gradients(layer, nn), strict=True):
        assert type(fake) is FakeTensor
        assert fake.shape == real.shape


@pytest.mark.parametrize("layer", LAYERS)
def test_a_mode_sees_the_operations_of_the_backward(layer: str) -> None:
    mode = Counting()
    torch.testing.assert_close(gradients(layer, nk, mode), gradients(layer, nn), rtol=1e-5, atol=1e-5)
    assert mode.seen


@pytest.mark.parametrize("layer", LAYERS)
def test_a_sparse_gradient_is_that_of_its_values(layer: str) -> None:
    """torch's own layers raise there; ours take it where the rest of the graph made it."""
    x, dy = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    made = LAYERS[layer](nk)
    (sparse,) = torch.autograd.grad(made(x), x, dy.to_sparse())
    (dense,) = torch.autograd.grad(made(x), x, dy)
    torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5)  # by operations and by the kernel


NOT_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "wrapper": Wrapper,
    "subclass": lambda t: t.as_subclass(type("Subclass", (Tensor,), {})),
    "fake": FakeTensorMode().from_tensor,
    "sparse": Tensor.to_sparse,
    "meta": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("make", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_the_core_tells_them_apart_and_takes_none(make: Callable[[Tensor], Tensor]) -> None:
    x, ctx = torch.randn(4, 3), SimpleNamespace(needs_input_grad=(True,) * 4)
    core.fused_forward(ctx, x, None, None, None, None, None, 0, 0, True, 1e-5, 0, 0.0)
    ctx.saved_tensors = ctx.to_save
    assert core.plain_gradient(x)
    assert not core.plain_gradient(make(x))
    with pytest.raises((TypeError, RuntimeError), match="grad_output"):
        core.fused_backward(ctx, make(x))


def test_no_gradient_is_plain_under_a_mode() -> None:
    x = torch.randn(4, 3)
    with Counting():
        assert not core.plain_gradient(x)
    assert core.plain_gradient(x)


class Kept(Wrapper):
    """Whose operations give such tensors."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        found = super().__torch_dispatch__(function, types, arguments, keywords)
        return tree_map(lambda value: cls(value) if type(value) is Tensor else value, found)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_gradient_of_a_subclass_is_handed_on_in_inference_mode(layer: str) -> None:
    found = []
    for library in (nk, nn):
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = LAYERS[layer](library)(x)
        y.register_hook(Kept)
        with torch.inference_mode():
            y.backward(torch.ones(SHAPE) * torch.arange(8.0))
        assert isinstance(x.grad, Kept)
        found.append(x.grad.inner)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
