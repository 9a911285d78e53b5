"""Compiled graphs under hooks on saved tensors: another memory format or dtype keeps the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import normkit as nk
from tests.kernels.native_isa import needs_native

pytestmark = [needs_native, pytest.mark.filterwarnings("ignore")]  # Dynamo warns about itself
F = nk.functional
SHAPE = N, C, H, W = (2, 8, 2, 4)  # whose bits are as many bytes in either order

BITS: dict[str, Callable[..., Tensor]] = {
    "batch": partial(F.batch_norm, running_mean=None, running_var=None, training=True, eps=3e-4, activation="relu"),
    "group": partial(F.group_norm, num_groups=2, eps=3e-4, activation="relu"),
    "instance": partial(F.instance_norm, eps=3e-4, activation="relu"),
}
ROWS: dict[str, Callable[..., Any]] = {
    "layer": lambda x, r: F.layer_norm(x, (W,), eps=3e-4) + r,
    "rms": lambda x, r: F.rms_norm(x, (W,), eps=3e-4) + r,
    "added layer": lambda x, r: sum(F.add_layer_norm(x, r, (W,), eps=3e-4)),
}


def format(order: torch.memory_format) -> Callable[[Tensor], Tensor]:
    return lambda t: t.contiguous(memory_format=order) if t.dim() == 4 else t.contiguous()


def other_format(tensor: Tensor) -> Tensor:
    last = tensor.dim() == 4 and tensor.is_contiguous()
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def as_floats(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype) if t.is_floating_point() else t


HOOKS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "other format": lambda: saved_tensors_hooks(Tensor.detach, other_format),
    "contiguous": lambda: saved_tensors_hooks(Tensor.detach, format(torch.contiguous_format)),
    "channels last": lambda: saved_tensors_hooks(Tensor.detach, format(torch.channels_last)),
    "on the CPU": save_on_cpu,
    "in float64": lambda: saved_tensors_hooks(as_floats(torch.float64), as_floats(torch.float32)),
    "floats rounded": lambda: saved_tensors_hooks(as_floats(torch.bfloat16), as_floats(torch.float32)),
    "everything in float32": lambda: saved_tensors_hooks(Tensor.float, lambda t: t),
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves(layout: torch.memory_format) -> tuple[Tensor, ...]:
    """x and residual, of numbers that bfloat16 has, as their sums are, and dy."""
    made = (torch.randint(-32, 32, SHAPE, generator=torch.Generator().manual_seed(seed)) / 16 for seed in range(3))
    return tuple(t.contiguous(memory_format=layout) for t in made)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["rows", "channels last"])
@pytest.mark.parametrize("name", [*BITS, *ROWS])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_hooks_may_change_what_a_graph_saves(backend: str, name: str, layout: torch.memory_format) -> None:
    norm, (x, residual, dy) = {**BITS, **ROWS}[name], leaves(layout)

    def block(x: Tensor, residual: Tensor) -> Any:
        return norm(x, residual=residual) if name in BITS else norm(x, residual)

    wanted = [x.requires_grad_(), residual.requires_grad_()]
    expected = torch.autograd.grad(block(*wanted), wanted, dy)
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    for hook, enter in HOOKS.items():
        with enter():
            y = compiled(*wanted)
        found = torch.autograd.grad(y, wanted, dy)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=lambda text, hook=hook: f"{hook}: {text}")


def compiles_under_hooks(backend: str) -> bool:
    """Whether torch compiles its own batch norm within a checkpoint under hooks: 2.4 does not by aot_eager."""

    def block(x: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(x, None, None, training=True).relu()

    x = leaves(torch.channels_last)[0].requires_grad_()
    try:
        with saved_tensors_hooks(Tensor.detach, other_format):
            y = checkpoint(torch.compile(block, backend=backend, fullgraph=True), x, use_reentrant=False)
        y.sum().backward()
    except torch._dynamo.exc.BackendCompilerFailed:
        return False
    return True


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("channels", [8, 3], ids=["as many bytes", "fewer"])
def test_a_checkpoint_may_see_its_input_in_another_memory_format(backend: str, name: str, channels: int) -> None:
    """The second forward is another graph, of other strides; its bits meet the first one's record."""
    if not compiles_under_hooks(backend):
        pytest.skip("this torch does not compile its own norm under a checkpoint's hooks")
    torch._dynamo.reset()
    x, residual, dy = leaves(torch.channels_last)
    x, residual, dy = (t[:, :channels].contiguous(memory_format=torch.channels_last) for t in (x, residual, dy))
    wanted = [x.requires_grad_(), residual.requires_grad_()]
    norm = BITS[name] if channels == 8 or name != "group" else partial(BITS[name], num_groups=1)

    def block(x: Tensor, residual: Tensor) -> Tensor:
        return norm(x, residual=residual)

    expected = torch.autograd.grad(block(*wanted), wanted, dy)
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    with saved_tensors_hooks(Tensor.detach, other_format):
        y = checkpoint(compiled, *wanted, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y, wanted, dy), expected, rtol=1e-5, atol=1e-5)
