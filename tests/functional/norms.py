"""What the tests of batch norm share: both paths, a drawn problem, and its truth with the contract's bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import normkit as nk
from normkit import reference
from normkit.contract import input_gradient_bound, mean_over, output_bound, parameter_gradient_bound, unit_roundoff
from normkit.kernels import native
from tests.cases import EPS, Shape, affine, gaussian, generator
from tests.tolerances import assert_within

EXACT_BACKENDS = ["native", "composed"] if native.available() else ["composed"]  # the paths the contract holds for
BACKENDS = [*EXACT_BACKENDS, "aten"]


@dataclass(frozen=True)
class Problem:
    """One batch norm: x, dy: (N, C, *), rounded to the dtype; weight, bias: (C,) in a dtype that fits."""

    x: Tensor
    dy: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def axes(self) -> tuple[int, ...]:
        return (0, *range(2, self.x.dim()))

    def channel(self, value: Tensor) -> Tensor:
        return value.double().reshape(1, -1, *[1] * (self.x.dim() - 2))


def problem(
    shape: Shape,
    dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
    values: Callable[[Shape, torch.Generator], Tensor] = gaussian,
    seed: int = 0,
) -> Problem:
    """Draw values, round them to the dtype, lay them out in memory."""
    g = generator(seed)
    x = layout(values(shape, g).to(dtype))
    weight, bias = affine(shape[1], g)
    wide = torch.promote_types(dtype, torch.float32)
    return Problem(x, layout(gaussian(shape, g).to(dtype)), weight.to(wide), bias.to(wide))


def assert_right(
    p: Problem, norm: Callable[[Tensor, Tensor, Tensor], Tensor], factor: float = 1.0, eps: float = EPS
) -> None:
    """Raise unless the training forward and backward of `norm(x, weight, bias)` hold the contract's bounds."""
    x, weight, bias = (t.detach().requires_grad_() for t in (p.x, p.weight, p.bias))
    y = norm(x, weight, bias)
    assert y.dtype == x.dtype
    assert_layout_kept(y, x)
    dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), p.dy)

    x64, dy64, w64, b64 = p.x.double(), p.dy.double(), p.weight.double(), p.bias.double()
    y64, _, var64 = reference.batch_norm(x64, w64, b64, eps)
    dx64, dweight64, dbias64 = reference.batch_norm_backward(dy64, x64, w64, eps)
    xhat, rstd = reference.batch_norm(x64, None, None, eps)[0], (p.channel(var64) + eps).rsqrt()
    u, u_parameter = unit_roundoff(y.dtype) * factor, unit_roundoff(p.weight.dtype) * factor
    assert_within(y, y64, output_bound(xhat, p.channel(w64), p.channel(b64), u), "y")
    assert_within(dx, dx64, input_gradient_bound(dy64 * p.channel(w64), xhat, rstd, mean_over(p.axes), u), "dx")
    assert_within(dweight, dweight64, parameter_gradient_bound(dy64 * xhat, p.axes, u_parameter), "dweight")
    assert_within(dbias, dbias64, parameter_gradient_bound(dy64, p.axes, u_parameter), "dbias")


def assert_layout_kept(y: Tensor, x: Tensor) -> None:
    """Raise unless y has x's shape, and its memory format where x has one."""
    assert y.shape == x.shape
    if x.is_contiguous():
        assert y.is_contiguous()
    elif x.movedim(1, -1).is_contiguous():
        assert y.movedim(1, -1).is_contiguous()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def training(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """normkit's batch norm under the batch's statistics."""
    return nk.functional.batch_norm(x, None, None, weight, bias, True, eps=EPS)
