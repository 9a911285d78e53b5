"""`nk.backend("aten")`: PyTorch's kernels take what ours take, in any layout, empty too, or say that they cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import normkit as nk
from tests.cases import EPS

Norm = Callable[[Any, Tensor], Tensor]  # (normkit's functions or torch's, input)
NORMS: dict[str, Norm] = {
    "batch_norm": lambda f, x: f.batch_norm(x, None, None, training=True, eps=EPS),
    "group_norm": lambda f, x: f.group_norm(x, 2, eps=EPS),
    "instance_norm": lambda f, x: f.instance_norm(x, eps=EPS),
    "layer_norm": lambda f, x: f.layer_norm(x, x.shape[2:], eps=EPS),
    "rms_norm": lambda f, x: f.rms_norm(x, x.shape[2:], eps=EPS),
}
BOTH = (nk.functional, nn.functional)
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
def test_any_layout(layout: Callable[[Tensor], Tensor], shape: tuple[int, ...], norm: Norm) -> None:
    x, dy = layout(draw(*shape)).requires_grad_(), layout(draw(*shape))
    with nk.backend("aten"):
        ours, theirs = (norm(f, x) for f in BOTH)
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(y, x, dy)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@norms
@pytest.mark.parametrize("shape", [(0, 4, 3, 2), (3, 4, 0, 2)], ids=str)
def test_an_empty_input(shape: tuple[int, ...], norm: Norm) -> None:
    """Taken, or refused in torch's words: 2.15 has no group norm of no positions."""
    x = draw(*shape).requires_grad_()
    with nk.backend("aten"):
        try:
            expected = norm(nn.functional, x)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=f"^{re.escape(str(error))}$"):
                norm(nk.functional, x)
            return
        y = norm(nk.functional, x)
        y.sum().backward()
    assert y.shape == expected.shape
    assert x.grad is not None
    assert x.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("norm", [nk.functional.batch_norm, nk.functional.instance_norm], ids=["batch", "instance"])
def test_running_statistics_of_half_inputs_without_parameters_keep_their_digits(
    norm: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    x, running_mean, running_var = draw(7, 4, 6).to(dtype), torch.zeros(4), torch.ones(4)
    with nk.backend("aten"):
        norm(x, running_mean, running_var, None, None, True, 1.0)
    wide = x.double()
    var = wide.var((0, 2)) if norm is nk.functional.batch_norm else wide.var(2).mean(0)
    torch.testing.assert_close(running_mean.double(), wide.mean((0, 2)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(running_var.double(), var, rtol=4e-6, atol=0)


def group_norm_of_all(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nk.functional.group_norm(x, 1, weight, bias, eps=EPS)


def refuses(shape: tuple[int, ...]) -> bool:
    """Whether this torch's group norm takes no such input: since 2.15 one without positions or channels."""
    try:
        F.group_norm(draw(*shape), 1)
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 4, 0), (3, 0, 5)], ids=str)
@pytest.mark.parametrize(
    "norm",
    [
        lambda x, w, b: nk.functional.batch_norm(x, None, None, w, b, training=True, eps=EPS),
        group_norm_of_all,
        lambda x, w, b: nk.functional.instance_norm(x, None, None, w, b, eps=EPS),
    ],
    ids=["batch_norm", "group_norm", "instance_norm"],
)
def test_an_empty_input_gives_parameters_the_gradient_zero(
    norm: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    weight, bias = (torch.ones(shape[1], requires_grad=True) for _ in range(2))  # PyTorch's kernel gives NaN
    if norm is group_norm_of_all and refuses(shape):
        with pytest.raises(RuntimeError), nk.backend("aten"):
            norm(draw(*shape), weight, bias)
        return
    with nk.backend("aten"):
        norm(draw(*shape), weight, bias).sum().backward()
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert not parameter.grad.any()


@norms
def test_the_output_may_be_changed_in_place(norm: Norm) -> None:
    x = draw(3, 4, 5).requires_grad_()
    with nk.backend("aten"):
        ours, theirs = (norm(f, x) for f in BOTH)
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
def test_forward_mode_is_refused(norm: Norm) -> None:
    x = draw(3, 4, 5)
    with forward_ad.dual_level(), nk.backend("aten"), pytest.raises(RuntimeError, match="or a forward-mode level"):
        norm(nk.functional, forward_ad.make_dual(x, x))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_group_norm_where_axes_of_size_one_leave_the_order_of_memory_open(layout: Callable[[Tensor], Tensor]) -> None:
    """Not against torch's instance norm, whose gradient is wrong there for a gradient that is channels last."""
    x, dy = layout(draw(1, 4, 1, 7)).requires_grad_(), layout(draw(1, 4, 1, 7))
    with nk.backend("aten"):
        y = nk.functional.group_norm(x, 2, eps=EPS)
    expected = nn.functional.group_norm(x, 2, eps=EPS)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(*(torch.autograd.grad(o, x, dy)[0] for o in (y, expected)), rtol=1e-4, atol=1e-5)
