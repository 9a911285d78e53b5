"""The bits that a piecewise linear activation behind a residual keeps: in which order they lie, whoever reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.functional import ordered_bits
from normkit.kernels import native
from tests.kernels.native_isa import needs_native

pytestmark = needs_native
F = nk.functional

Norm = Callable[..., Tensor]
BATCH = partial(F.batch_norm, running_mean=None, running_var=None, training=True, eps=3e-4)
NORMS: dict[str, Norm] = {
    "batch": BATCH,
    "ghost": partial(F.ghost_batch_norm, running_mean=None, running_var=None, training=True, virtual_batch_size=2),
    "group": partial(F.group_norm, num_groups=1, eps=3e-4),
    "instance": partial(F.instance_norm, eps=3e-4),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask_of(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(3)) < 0.7


def other_format(tensor: Tensor) -> Tensor:
    """The other of the two memory formats."""
    last = tensor.dim() == 4 and tensor.is_contiguous()
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(4, 8, 2, 4), (4, 3, 2, 4)], ids=["as many either way", "fewer one way"])
@pytest.mark.parametrize("name", [*NORMS, "masked batch", "modulated batch"])
def test_a_checkpoint_may_see_its_input_in_another_memory_format(
    name: str, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    """Hooks around it give back row-major what was channels last, or the other way round: the second forward's bits
    meet the first one's record."""
    x, residual, dy = (normal(*shape, seed=i).contiguous(memory_format=layout) for i in range(3))
    more: dict[str, Any] = {}
    if name == "masked batch":
        more = {"mask": mask_of(shape)}
    if name == "modulated batch":
        more = {"modulate": (normal(*shape[:2], seed=4), normal(*shape[:2], seed=5))}
    norm = NORMS[name.split()[-1]]

    def block(x: Tensor, residual: Tensor) -> Tensor:
        return norm(x, residual=residual, activation="relu", **more)

    leaves = [x.requires_grad_(), residual.requires_grad_()]
    expected = torch.autograd.grad(block(*leaves), leaves, dy)
    with saved_tensors_hooks(Tensor.detach, other_format):
        y = checkpoint(block, *leaves, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y, leaves, dy), expected, rtol=1e-5, atol=1e-5)


CHANGED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "longer": (lambda t: t.repeat(2), "bits must be the 25 bytes of the forward, got 50"),
    "shorter": (lambda t: t[:-1], "bits must be the 25 bytes of the forward, got 24"),
    "other numbers": (lambda t: t.float() + 0.5, "statistics back as other values"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
def test_what_a_hook_cuts_or_repeats_is_refused(change: str) -> None:
    make, text = CHANGED[change]
    x = normal(3, 5, 2).requires_grad_()
    with saved_tensors_hooks(Tensor.detach, lambda t: make(t) if t.dim() == 1 and t.dtype == torch.uint8 else t):
        y = BATCH(x, residual=normal(3, 5, 2, seed=1), activation="relu")
    with pytest.raises(RuntimeError, match=text):
        y.sum().backward()


@pytest.mark.parametrize("shape", [(4, 3), (3, 5, 2), (2, 8, 9), (2, 9, 8), (2, 3, 1, 1), (0, 3), (2, 0, 4)])
@pytest.mark.parametrize("last", [False, True])
def test_bits_of_either_order_have_one_size_and_come_back(shape: tuple[int, ...], last: bool) -> None:
    x = torch.zeros(shape)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    given = torch.randint(256, (native.count_bit_bytes(x),), dtype=torch.uint8)
    room = ordered_bits.pack(given, shape, last)
    assert room.shape == (ordered_bits.size(shape),)
    bits, found = ordered_bits.unpack(room, shape)
    assert torch.equal(bits, given)
    assert found == last


def test_a_mode_of_fake_tensors_does_not_hide_the_order() -> None:
    room = ordered_bits.pack(torch.arange(4, dtype=torch.uint8), (4, 3), True)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        bits, last = ordered_bits.unpack(room, (4, 3))
    assert (bits.shape, last) == ((4,), True)


SECOND: dict[str, tuple[tuple[int, ...], Norm]] = {
    "no sample": ((0, 3), BATCH),
    "no channel": ((2, 0), NORMS["group"]),
    "no position": ((2, 3, 0), BATCH),
    "one position, modulated": ((5, 3), partial(BATCH, modulate=(normal(5, 3, seed=4), normal(5, 3, seed=5)))),
    # the planes' bits are as many bytes in one row as in two
    "as many bytes": ((2, 7), partial(BATCH, modulate=(normal(2, 7, seed=4), normal(2, 7, seed=5)))),
    "one position, masked": ((5, 3), partial(NORMS["group"], mask=torch.tensor([True, True, False, True, True]))),
    "masked": ((2, 7, 1), partial(NORMS["group"], mask=torch.tensor([[True], [True]]))),
}


@pytest.mark.parametrize("name", SECOND)
def test_a_backward_that_is_differentiated_reads_them_as_the_kernel_wrote_them(name: str) -> None:
    shape, norm = SECOND[name]
    if name == "no channel":
        try:
            torch.nn.functional.group_norm(torch.zeros(shape), 1)
        except RuntimeError as refused:  # from torch 2.15 on, and normkit follows the torch at hand
            pytest.skip(str(refused))
    x, residual, dy = (normal(*shape, seed=i).requires_grad_() for i in range(3))

    def second() -> tuple[Tensor, ...]:
        y = norm(x, residual=residual, activation="relu")
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        return dx, *torch.autograd.grad(dx.square().sum(), (x, dy))

    found = second()
    with nk.backend("composed"):
        torch.testing.assert_close(found, second(), rtol=1e-5, atol=1e-6)


def test_an_input_whose_elements_overlapped_may_be_another_tensor_by_the_backward() -> None:
    """`x.data = ...`, as optimizers and offloading write it; the copy has an order that the overlapping one has not."""
    base, dy, residual = normal(9), normal(1, 2, 3, seed=1), normal(1, 2, 3, seed=2)
    mask = torch.tensor([[True, True, False]])
    found = []
    for clone in (False, True):
        x = base.as_strided((1, 2, 3), (1, 1, 1)).requires_grad_()
        y = BATCH(x, residual=residual, activation="relu", mask=mask)
        if clone:
            x.data = x.data.clone()
        y.backward(dy)
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0])
