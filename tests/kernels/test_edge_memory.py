"""Where a tensor's values are not in its memory as they look: freed, negated or zero by a flag, on another device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import normkit as nk
import normkit.functional as F
from normkit.kernels import native
from normkit.kernels.core import core
from tests.kernels.native_isa import needs_native

pytestmark = needs_native

FREED = "The tensor has a non-zero number of elements, but its data is not allocated yet"


def imaginary(tensor: Tensor) -> Tensor:
    """Equal values that torch has yet to negate; of one element it is contiguous."""
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


def negated(tensor: Tensor) -> Tensor:
    """The same, contiguous whatever its size."""
    return torch._neg_view(-tensor)


def apart(tensor: Tensor) -> Tensor:
    """Equal values with gaps between them."""
    return torch.stack([tensor, tensor], -1)[..., 0]


def unaligned(tensor: Tensor) -> Tensor:
    """Equal values at an odd address."""
    memory = bytearray(tensor.numel() * tensor.element_size() + 1)
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(tensor.shape).copy_(tensor)


LAZY = {"imaginary": imaginary, "negated": negated, "apart": apart, "unaligned": unaligned}


def batch(x: Tensor, w: Tensor, b: Tensor, r: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return F.batch_norm(x, mean, var, w, b, False, residual=r, activation="silu")


def group(x: Tensor, w: Tensor, b: Tensor, r: Tensor, *_: Tensor) -> Tensor:
    return F.group_norm(x, 1, w, b, residual=r, activation="relu")


def rows(x: Tensor, w: Tensor, b: Tensor, *_: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), w.expand(x.shape[-1]).contiguous(), b.expand(x.shape[-1]))


@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", [batch, group])
@pytest.mark.parametrize("index", range(6), ids=["input", "weight", "bias", "residual", "mean", "var"])
def test_values_that_are_not_in_memory_as_they_look_count(
    norm: Callable[..., Tensor], index: int, channels: int, lazy: Callable[[Tensor], Tensor]
) -> None:
    g = torch.Generator().manual_seed(0)
    shape = (4, channels, 5)
    operands = [torch.rand(s, generator=g) for s in (shape, channels, channels, shape, channels, channels)]
    expected = norm(*operands)
    operands[index] = lazy(operands[index])
    with nk.backend("native"):
        torch.testing.assert_close(norm(*operands), expected, rtol=0, atol=0)


@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("role", ["input", "weight", "gradient"])
def test_gradients_of_such_values_are_right(role: str, lazy: Callable[[Tensor], Tensor]) -> None:
    x, w, dy = torch.randn(4, 1, 5), torch.rand(1), torch.randn(4, 1, 5)

    def gradients(x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        return torch.autograd.grad(F.batch_norm(x, None, None, w, None, True), [x, w], dy)

    expected = gradients(x, w, dy)
    found = gradients(*(lazy(t) if name == role else t for name, t in (("input", x), ("weight", w), ("gradient", dy))))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("buffer", ["running_mean", "running_var", "num_batches_tracked"])
def test_such_buffers_are_moved_in_place(buffer: str, lazy: Callable[[Tensor], Tensor]) -> None:
    if buffer == "num_batches_tracked" and lazy in (imaginary, negated):
        pytest.skip("no part of a complex number is an integer")
    x, expected, layer = torch.randn(4, 1, 5), nk.BatchNorm1d(1), nk.BatchNorm1d(1)
    expected(x)
    moved = layer._buffers[buffer] = lazy(layer._buffers[buffer])
    layer(x)
    assert layer._buffers[buffer] is moved
    torch.testing.assert_close([*layer.buffers()], [*expected.buffers()])


@pytest.mark.parametrize("index", range(3), ids=["input", "weight", "bias"])
def test_a_zero_tensor_is_zeros(index: int) -> None:
    operands = [torch.randn(4, 3), torch.rand(3), torch.rand(3)]
    operands[index] = torch._efficientzerotensor(operands[index].shape)
    with nk.backend("native"):
        y = F.batch_norm(operands[0], None, None, *operands[1:], training=True)
    operands[index] = torch.zeros(operands[index].shape)
    torch.testing.assert_close(y, F.batch_norm(operands[0], None, None, *operands[1:], training=True), rtol=0, atol=0)


def test_a_zero_tensor_as_gradient_gives_zeros() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(nk.BatchNorm1d(3)(x), x, torch._efficientzerotensor((4, 3)))
    assert torch.equal(dx, torch.zeros(4, 3))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nk.BatchNorm1d(8),
    "batch_eval": lambda: nk.BatchNorm1d(8).eval(),
    "group": lambda: nk.GroupNorm(2, 8),
    "layer": lambda: nk.LayerNorm(8),
    "rms": lambda: nk.RMSNorm(8),
}  # fmt: skip
FREE_IN = [(layer, name) for layer, make in LAYERS.items() for name, t in make().state_dict().items() if t.dim()]


def free(tensor: Tensor) -> None:
    tensor.untyped_storage().resize_(0)


def test_the_words_are_torchs() -> None:
    module = nn.LayerNorm(8)
    free(module.weight.data)
    with pytest.raises(RuntimeError, match=FREED):
        module(torch.randn(4, 8))


@pytest.mark.parametrize(("layer", "name"), FREE_IN)
def test_a_parameter_or_buffer_whose_memory_was_freed_raises(layer: str, name: str) -> None:
    module = LAYERS[layer]()
    free(module.state_dict()[name])
    with pytest.raises(RuntimeError, match=FREED):
        module(torch.randn(4, 8))


@pytest.mark.parametrize("offset", [0, 16])
@pytest.mark.parametrize("layer", LAYERS)
def test_an_input_whose_memory_was_freed_raises(layer: str, offset: int) -> None:
    whole = torch.randn(48)
    x = whole[offset : offset + 32].view(4, 8)  # of a view, torch shows the offset as address
    free(whole)
    with pytest.raises(RuntimeError, match=FREED):
        LAYERS[layer]()(x)


@pytest.mark.parametrize("what", ["input", "weight", "residual"])
@pytest.mark.parametrize("layer", LAYERS)
def test_memory_that_is_freed_before_the_backward_raises(layer: str, what: str) -> None:
    module, x, r = LAYERS[layer](), torch.randn(4, 8), torch.randn(4, 8, requires_grad=True)
    if what == "residual":
        if layer in ("layer", "rms"):
            pytest.skip("no residual")
        y = F.group_norm(x, 2, module.weight, residual=r, activation="silu")
    else:
        y = module(x)
    free({"input": x, "weight": module.weight, "residual": r}[what].data)
    with pytest.raises(RuntimeError, match=FREED):
        y.sum().backward()


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("context", [torch.device, default_device], ids=["context", "default"])
@pytest.mark.parametrize("layer", LAYERS)
def test_torchs_default_device_is_not_that_of_what_the_core_makes(
    layer: str, context: Callable[[str], AbstractContextManager[object]]
) -> None:
    def step(around: AbstractContextManager[object]) -> list[Tensor]:
        module, x, r = LAYERS[layer](), *(torch.ones(4, 8).cumsum(i).requires_grad_() for i in range(2))
        with around:
            y = module(x)
            if layer not in ("layer", "rms"):
                y = y + F.group_norm(x, 2, residual=r, activation="relu")  # with bits
            return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]

    torch.testing.assert_close(step(context("meta")), step(contextlib.nullcontext()), rtol=0, atol=0)


@pytest.mark.parametrize("rest", [(), (None,) * 5 + (0, 1e-5, 0, 0.0, True, ())], ids=["statistics", "forward"])
def test_a_mode_that_makes_tensors_without_memory_raises(rest: tuple[object, ...]) -> None:
    if not rest and native.edge() == "C shim":
        pytest.skip("the older edge makes statistics of memory of its own, which no mode changes")
    function = core.channel_forward if rest else core.channel_statistics
    x = torch.randn(4, 3)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="a mode of torch is active"):
        function(x, *rest)
