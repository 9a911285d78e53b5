"""`nk.backend("aten")`: PyTorch's kernels take what ours take, in any layout, empty too, or say that they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import normkit as nk
from tests.cases import EPS

# torch scripts its own forward-mode decompositions on first use and warns about itself
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

NORMS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {  # ours, torch's
    "batch_norm": lambda x: (
        nk.functional.batch_norm(x, None, None, training=True, eps=EPS),
        nn.functional.batch_norm(x, None, None, training=True, eps=EPS),
    ),
    "group_norm": lambda x: (
        nk.functional.group_norm(x, 2, eps=EPS),
        nn.functional.group_norm(x, 2, eps=EPS),
    ),
    "instance_norm": lambda x: (nk.functional.instance_norm(x, eps=EPS), nn.functional.instance_norm(x, eps=EPS)),
    "layer_norm": lambda x: (
        nk.functional.layer_norm(x, x.shape[2:], eps=EPS),
        nn.functional.layer_norm(x, x.shape[2:], eps=EPS),
    ),
    "rms_norm": lambda x: (
        nk.functional.rms_norm(x, x.shape[2:], eps=EPS),
        nn.functional.rms_norm(x, x.shape[2:], eps=EPS),
    ),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "with_gaps": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}
norms = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


@norms
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 6), (2, 4, 3, 2, 5)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout(
    layout: Callable[[Tensor], Tensor], shape: tuple[int, ...], norm: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> None:
    x, dy = layout(draw(*shape)).requires_grad_(), layout(draw(*shape))
    with nk.backend("aten"):
        ours, theirs = norm(x)
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(y, x, dy)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@norms
@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (3, 4, 0, 2)], ids=str)
def test_an_empty_input(shape: tuple[int, ...], norm: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    x = draw(*shape).requires_grad_()
    with nk.backend("aten"):
        y, expected = norm(x)
        y.sum().backward()
    assert y.shape == expected.shape
    assert x.grad is not None
    assert x.grad.shape == shape


@norms
def test_the_output_may_be_changed_in_place(norm: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    x = draw(3, 4, 5).requires_grad_()
    with nk.backend("aten"):
        ours, theirs = norm(x)
    gradients = [torch.autograd.grad(y.mul_(2), x, torch.ones_like(x) * 3)[0] for y in (ours, theirs)]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_strided_weight() -> None:
    x, weight = draw(3, 4).requires_grad_(), draw(8)[::2]
    with nk.backend("aten"):
        y = nk.functional.batch_norm(x, None, None, weight, training=True, eps=EPS)
    dy = draw(3, 4) + 1
    (dx,) = torch.autograd.grad(y, x, dy)
    y = nk.functional.batch_norm(x, None, None, weight.contiguous(), training=True, eps=EPS)
    torch.testing.assert_close(dx, torch.autograd.grad(y, x, dy)[0], rtol=1e-4, atol=1e-5)


def test_a_bias_alone() -> None:
    x, bias = draw(3, 4, 5).double(), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    with nk.backend("aten"):
        nk.functional.group_norm(x, 2, None, bias, eps=EPS).sum().backward()
    assert bias.grad is not None
    torch.testing.assert_close(bias.grad, torch.full((4,), 15.0, dtype=torch.float64))


@norms
def test_forward_mode_is_refused(norm: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    x = draw(3, 4, 5)
    with forward_ad.dual_level(), nk.backend("aten"), pytest.raises(RuntimeError, match="or a forward-mode level"):
        norm(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_group_norm_where_axes_of_size_one_leave_the_order_of_memory_open(layout: Callable[[Tensor], Tensor]) -> None:
    """Not against torch's instance norm, whose gradient is wrong there for a gradient that is channels last."""
    x, dy = layout(draw(1, 4, 1, 7)).requires_grad_(), layout(draw(1, 4, 1, 7))
    with nk.backend("aten"):
        y = nk.functional.group_norm(x, 2, eps=EPS)
    expected = nn.functional.group_norm(x, 2, eps=EPS)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(o, x, dy)[0] for o in (y, expected)), rtol=1e-4, atol=1e-5)
