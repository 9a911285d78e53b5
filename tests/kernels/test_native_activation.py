"""Activation and residual fused into the native kernels: equal to the operations one after the other, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from normkit.contract import unit_roundoff
from normkit.kernels import native
from tests import cases
from tests.kernels import flat
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_same, assert_within

pytestmark = needs_native
EPS = cases.EPS
ACTIVATIONS = {
    0: lambda z: z,
    1: F.relu,
    2: lambda z: F.leaky_relu(z, 0.1),
    3: F.relu6,
    4: F.silu,
    9: F.hardswish,
}
# Every term of a gradient is at most a few units, and sums of m terms divide by m again: 64 roundings of the largest.
ROUNDINGS = 64.0
FAMILIES = {"batch": None, "group": 2, "instance": 6}


def expected(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None, code: int, groups: int | None) -> Tensor:
    z = F.batch_norm(x, None, None, w, b, True, 0.1, EPS) if groups is None else F.group_norm(x, groups, w, b, EPS)
    return ACTIVATIONS[code](z if r is None else z + r)


def near_a_kink(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None, groups: int | None) -> Tensor:
    """Where rounding may decide on which side of a kink (0, 3, -3 or 6) an element falls."""
    z = expected(x, w, b, r, 0, groups)
    return torch.stack([(z - kink).abs() < 1e-5 for kink in (0.0, 3.0, -3.0, 6.0)]).any(0)


def run(
    x: Tensor, w: Tensor, b: Tensor, r: Tensor | None, dy: Tensor, code: int, groups: int | None
) -> tuple[Tensor, Tensor | None, tuple[Any, ...]]:
    needs = (True, True, True, r is not None)
    if groups is None:
        y, stats, bits = flat.batch_norm_forward(x, w, b, r, code, 0.1, EPS, save_for_backward=True)
        kept = None if bits is not None else r
        found = flat.batch_norm_backward(dy, x, w, b, kept, bits, stats, code, 0.1, training=True, needs=needs)
    else:
        y, stats, bits = flat.group_norm_forward(x, groups, w, b, r, code, 0.1, EPS, save_for_backward=True)
        kept = None if bits is not None else r
        found = flat.group_norm_backward(dy, x, groups, w, b, kept, bits, stats, code, 0.1, needs=needs)
    return y, bits, found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("code", ACTIVATIONS)
def test_fused_equals_one_after_the_other(isa: str, code: int, residual: bool, family: str) -> None:
    groups = FAMILIES[family]
    for layout, shape in (("contiguous", (3, 6, 5, 7)), ("channels_last", (3, 6, 5, 7)), ("contiguous", (2, 6, 37, 9))):
        for dtype in (torch.float32, torch.float64):
            g = cases.generator(7)
            x, r, dy = (cases.LAYOUTS[layout](cases.gaussian(shape, g, 1.0, 3.0).to(dtype)) for _ in range(3))
            w, b = (t.to(dtype) for t in cases.affine(6, g))
            extra = r if residual else None
            dy = dy.masked_fill(near_a_kink(x.double(), w.double(), b.double(), extra, groups), 0.0)
            leaves = [t.double().clone().requires_grad_() for t in (x, w, b, r)]
            y64 = expected(*leaves[:3], leaves[3] if residual else None, code, groups)
            grads64 = torch.autograd.grad(y64, leaves if residual else leaves[:3], dy.double())
            y, bits, found = run(x, w, b, extra, dy, code, groups)
            assert (bits is not None) == (residual and code in (1, 2, 3))
            for a, e in zip((y, *found), (y64, *grads64), strict=False):
                assert_within(a, e, ROUNDINGS * unit_roundoff(dtype) * max(1.0, float(e.detach().abs().max())))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 19, 5, 7), (4, 13), (2, 3, 17)], ids=str)
def test_bits_tell_where_the_activation_is_open(isa: str, shape: tuple[int, ...], layout: str) -> None:
    g = cases.generator(3)
    x, r = (cases.LAYOUTS[layout](cases.gaussian(shape, g).float()) for _ in range(2))
    w, b = (t.float() for t in cases.affine(shape[1], g))
    y, _, bits = flat.batch_norm_forward(x, w, b, r, 1, 0.0, EPS, save_for_backward=True)
    assert bits is not None
    assert torch.equal(native.unpack_bits(bits, x), y > 0)


def test_relu_lets_nan_through_and_keeps_infinite_gradients_out(isa: str) -> None:
    x, w, b = torch.tensor([[-1.0], [1.0], [3.0]]), torch.ones(1), torch.zeros(1)
    y, stats, _ = flat.batch_norm_forward(x, w, b, None, 1, 0.0, EPS, save_for_backward=True)
    dy = torch.tensor([[float("inf")], [1.0], [1.0]])  # behind a closed gate
    dx = flat.batch_norm_backward(
        dy, x, w, b, None, None, stats, 1, 0.0, training=True, needs=(True, False, False, False)
    )[0]
    assert dx is not None
    assert dx.isfinite().all()
    bad = torch.tensor([[float("nan")], [1.0], [3.0]])
    y, _, _ = flat.batch_norm_forward(bad, w, b, None, 1, 0.0, EPS, save_for_backward=True)
    assert y.isnan().all()


def test_identity_with_residual_passes_the_gradient_on() -> None:
    g = cases.generator()
    x, r, dy = (cases.gaussian((3, 4, 5), g).float() for _ in range(3))
    _, stats, bits = flat.batch_norm_forward(x, None, None, r, 0, 0.0, EPS, save_for_backward=True)
    assert bits is None
    needs = (True, False, False, True)
    dresidual = flat.batch_norm_backward(dy, x, None, None, None, None, stats, 0, 0.0, training=True, needs=needs)[3]
    assert dresidual is not None
    assert_same(dresidual, dy)
