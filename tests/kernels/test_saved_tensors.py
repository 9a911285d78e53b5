"""What hooks on saved tensors hand back: another dtype or memory format keeps the gradients, all else is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import normkit as nk
import normkit.functional as F
from normkit.kernels.core import core
from tests.kernels.native_isa import needs_native

pytestmark = needs_native

SHAPE = (4, 3, 8, 8)
LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "batch": lambda lib: lib.BatchNorm2d(3, eps=0.01),
    "batch_eval": lambda lib: lib.BatchNorm2d(3, eps=0.01).eval(),
    "group": lambda lib: lib.GroupNorm(3, 3, eps=0.01),
    "layer": lambda lib: lib.LayerNorm(8, eps=0.01),
    "rms": lambda lib: lib.RMSNorm(8, eps=0.01),
}
# Each pair packs and unpacks all that is saved, and by how much of itself it changes a float32 input at most.
HOOKS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], float]] = {
    "float32": (Tensor.float, lambda t: t, 0.0),
    "bfloat16": (Tensor.bfloat16, Tensor.float, 2.0**-8),
    "float16": (lambda t: (t.dtype, t.half()), lambda pair: pair[1].to(pair[0]), 2.0**-11),
    "float64": (Tensor.double, lambda t: t, 0.0),
    "sparse": (Tensor.to_sparse, Tensor.to_dense, 0.0),
    "numpy": (Tensor.numpy, torch.from_numpy, 0.0),
    "odd_address": (lambda t: (t, bytearray(t.nbytes + 1)), lambda packed: at_an_odd_address(*packed), 0.0),
}


def at_an_odd_address(tensor: Tensor, memory: bytearray) -> Tensor:
    """Equal values where no value of its dtype should lie."""
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(tensor.shape).copy_(tensor)


def gradients(module: nn.Module, x: Tensor, dy: Tensor, *hooks: Any) -> list[Tensor]:
    x = x.detach().requires_grad_()
    with saved_tensors_hooks(*hooks):
        y = module(x)
    return list(torch.autograd.grad(y, [x, *module.parameters()], dy))


def keep(value: Any) -> Any:
    return value


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_survive_hooks_that_change_all_that_is_saved(layer: str, hook: str) -> None:
    pack, unpack, change = HOOKS[hook]
    g = torch.Generator().manual_seed(0)
    x, dy = torch.randn(SHAPE, generator=g), torch.randn(SHAPE, generator=g)
    expected = gradients(LAYERS[layer](nn), x, dy, keep, keep)
    found = gradients(LAYERS[layer](nk), x, dy, pack, unpack)
    for ours, torchs in zip(found, expected, strict=True):
        # dx and dweight change by the first order of the change of x: rstd * max |x| < 8, and twice that by the sums
        torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-4 + 16 * change * float(torchs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layer", LAYERS)
def test_an_input_that_comes_back_in_another_dtype_is_taken_in_its_own(layer: str, dtype: torch.dtype) -> None:
    x, dy = torch.randn(SHAPE).to(dtype), torch.randn(SHAPE).to(dtype)
    cast = Tensor.double if dtype != torch.float64 else Tensor.float
    x = x.float().to(dtype)  # what the narrower cast keeps
    expected = gradients(LAYERS[layer](nk).to(dtype), x, dy, keep, keep)
    found = gradients(LAYERS[layer](nk).to(dtype), x, dy, cast, keep)
    rtol = 2.0**-24 if dtype == torch.float64 else 0.0  # a weight that comes back in float32 has its gradient there
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-7 * (rtol > 0))


def other_format(tensor: Tensor) -> Tensor:
    """The other of the two memory formats."""
    last = tensor.dim() == 4 and not tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_signs_are_read_in_the_order_of_the_forward(
    layout: torch.memory_format, activation: str, create_graph: bool
) -> None:
    """An offload that restores tensors row-major, or channels last, reverses the order of an input's memory."""
    g = torch.Generator().manual_seed(0)
    x, r, dy = (torch.randn(4, 8, 2, 4, generator=g).contiguous(memory_format=layout) for _ in range(3))

    def run(*hooks: Any) -> tuple[Tensor, ...]:
        a, b = x.detach().requires_grad_(), r.detach().requires_grad_()
        with saved_tensors_hooks(*hooks):
            y = F.batch_norm(a, None, None, training=True, residual=b, activation=activation)
        return torch.autograd.grad(y, [a, b], dy, create_graph=create_graph)

    torch.testing.assert_close(run(other_format, keep), run(keep, keep), rtol=1e-6, atol=1e-6)


CHANGED: dict[str, tuple[int, Callable[[Tensor], Tensor], str]] = {
    "input shorter": (0, lambda t: t[:1], "input must have the sizes"),
    "input of another rank": (0, Tensor.flatten, "input must have the sizes"),
    "input of integers": (0, Tensor.long, "input must be float32"),
    "weight longer": (1, lambda t: torch.cat([t, t]), "weight should contain 3 elements not 6"),
    "residual shorter": (3, lambda t: t[:1], "residual must have the sizes"),
    "statistics shorter": (5, lambda t: t[:1], "stats must be the 72 bytes of the forward, got 24"),
    "statistics as numbers": (5, lambda t: t.view(torch.float64), "stats must be the 72 bytes of the forward, got 9"),
    "statistics in float32": (5, lambda t: t.view(torch.float64).float(), "stats must be the 72 bytes .*, got 9"),
    "other statistics": (5, lambda t: t.float() + 0.5, "stats must be the bytes of the forward, got other values"),
    "no statistics": (5, lambda t: None, "argument 'stats' must be Tensor"),
    "signs longer": (6, lambda t: torch.cat([t, t]), "bits must be the 96 bytes of the forward, got 192"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
def test_what_is_not_what_was_saved_is_refused(change: str) -> None:
    index, make, text = CHANGED[change]
    x, r, w = torch.randn(SHAPE), torch.randn(SHAPE), torch.rand(3)
    ctx = SimpleNamespace(needs_input_grad=(True,) * 4 + (False,) * 8)
    code = 4 if index == 3 else 1  # silu keeps the residual, relu its sign
    core.fused_forward(ctx, x, w, w, r, None, None, 0, 0, True, 1e-5, code, 0.0)
    tensors = [*ctx.to_save]
    tensors[index] = make(tensors[index])
    ctx.saved_tensors = tuple(tensors)
    with pytest.raises((RuntimeError, TypeError), match=text) as raised:
        core.fused_backward(ctx, x)
    assert change == "no statistics" or "hooks on saved tensors" in str(raised.value)


def test_a_forward_without_a_context_saves_nothing_and_moves_the_statistics() -> None:
    x, mean, var = torch.randn(SHAPE), torch.zeros(3), torch.ones(3)
    batches = torch.zeros((), dtype=torch.int64)
    running = (mean, var, batches, 0.1, None)
    y = core.fused_forward(None, x, None, None, None, None, running, 0, 0, True, 1e-5, 0, 0.0)
    torch.testing.assert_close(y, nn.functional.batch_norm(x, m := torch.zeros(3), v := torch.ones(3), training=True))
    torch.testing.assert_close((mean, var), (m, v))
    assert batches == 1


def test_python_is_asked_to_move_what_is_no_plain_step() -> None:
    """Deferred statistics, and those of groups: with the statistics as float64."""
    x, seen = torch.randn(SHAPE), []
    norm = SimpleNamespace(move=lambda stats, input: seen.append((stats, input)))
    running = (torch.zeros(3), torch.ones(3), None, 0.1, [])
    for kind, size in ((0, 0), (1, 3)):
        ctx = SimpleNamespace()
        core.fused_forward(ctx, x, None, None, None, norm, running, kind, size, True, 1e-5, 0, 0.0)
        assert ctx.norm is norm
        stats, input = seen.pop()
        assert input is x
        assert stats.dtype == torch.float64
        assert stats.data_ptr() == ctx.to_save[5].data_ptr()
    assert stats.shape == (3, 12)
