"""Every fused activation, value and derivative, on a grid of z from tiny to infinite, against float64.

z goes in by a norm that does nothing (mean 0, variance 1), so that y is the activation and, for dy = 1, dx its
derivative. The reference is written so that nothing cancels where the true value goes to 0; torch's own does cancel.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tools.fuzz.smooth import CUBIC, SCALE, below, bend, hinge, sigmoid
from torch import Tensor, nn

from normkit import _activation as act
from normkit.contract import roundings_bound, underflow, unit_roundoff
from normkit.kernels import native
from normkit.surgery import activations
from tests.kernels import flat
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_within

pytestmark = needs_native
Function = Callable[[Tensor], Tensor]
where, zeros_like, ones_like = torch.where, torch.zeros_like, torch.ones_like
SLOPE, ALPHA = 0.2, 1.7


def open_between(z: Tensor, low: float, high: float) -> Tensor:
    return ((z > low) & (z < high)).double()


def sech2(z: Tensor) -> Tensor:
    return 4 * sigmoid(2 * z) * sigmoid(-2 * z)


# By code: the module, the value and the derivative.
CASES: dict[int, tuple[nn.Module, Function, Function]] = {
    act.IDENTITY: (nn.Identity(), lambda z: z, ones_like),
    act.RELU: (nn.ReLU(), lambda z: z.clamp(min=0), lambda z: (z > 0).double()),
    act.LEAKY_RELU: (
        nn.LeakyReLU(SLOPE), lambda z: where(z > 0, z, SLOPE * z), lambda z: where(z > 0, ones_like(z), SLOPE),
    ),
    act.RELU6: (nn.ReLU6(), lambda z: z.clamp(0, 6), lambda z: open_between(z, 0, 6)),
    act.SILU: (nn.SiLU(), lambda z: z * sigmoid(z), lambda z: sigmoid(z) * (1 + z * sigmoid(-z))),
    act.GELU: (
        nn.GELU(), lambda z: z * below(z), lambda z: below(z) + z * torch.exp(-0.5 * z * z) / (2 * torch.pi) ** 0.5,
    ),
    act.GELU_TANH: (
        nn.GELU("tanh"),
        lambda z: z * sigmoid(bend(z)),
        lambda z: sigmoid(bend(z)) * (1 + z * sigmoid(-bend(z)) * SCALE * (1 + 3 * CUBIC * z * z)),
    ),
    act.SIGMOID: (nn.Sigmoid(), sigmoid, lambda z: sigmoid(z) * sigmoid(-z)),
    act.TANH: (nn.Tanh(), torch.tanh, sech2),
    act.HARDSWISH: (
        nn.Hardswish(),
        lambda z: z * (z + 3).clamp(0, 6) / 6,
        lambda z: where(z >= 3, ones_like(z), where(z > -3, z / 3 + 0.5, zeros_like(z))),
    ),
    act.HARDSIGMOID: (nn.Hardsigmoid(), lambda z: (z + 3).clamp(0, 6) / 6, lambda z: open_between(z, -3, 3) / 6),
    act.ELU: (
        nn.ELU(ALPHA),
        lambda z: where(z > 0, z, ALPHA * torch.expm1(z.clamp(max=0))),
        lambda z: where(z > 0, ones_like(z), ALPHA * torch.exp(z.clamp(max=0))),
    ),
    act.MISH: (
        nn.Mish(),
        lambda z: z * torch.tanh(hinge(z)),
        lambda z: torch.tanh(hinge(z)) + z * sigmoid(z) * sech2(hinge(z)),
    ),
}  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
each = pytest.mark.parametrize("code", CASES, ids=[type(case[0]).__name__ for case in CASES.values()])


def grid(dtype: torch.dtype) -> Tensor:
    """(L,), L odd: both signs of 0, subnormal, tiny, ordinary, where e^z leaves float's range, and large."""
    positive = torch.tensor([0.0, 1e-42, 1e-38, 1e-30, 1e-8, 87.0, 88.0, 88.8, 103.0, 104.0, 120.0, 1e4, 1e18, 1e30])
    ordinary = torch.cat([torch.linspace(0, 15, 1500), torch.linspace(15, 110, 300), positive])
    z = torch.cat([ordinary, -ordinary, torch.tensor([3.0])]).to(dtype)
    return z[z.isfinite()]


def run(z: Tensor, code: int, layout: str, residual: bool) -> tuple[Tensor, Tensor]:
    """(activation(z), its derivative at z) by the kernels of given statistics; z: (L,), the input or the residual."""
    width = 23  # odd: whole vectors and tails
    padded = torch.cat([z, z.new_zeros(-z.numel() % width)])
    x = padded.view(1, 1, -1) if layout == "planar" else padded.view(-1, width)
    c = x.shape[1]
    x, r = (torch.zeros_like(x), x) if residual else (x, None)
    param = act.resolve(CASES[code][0]).param
    y, stats, bits = flat.batch_norm_inference(
        x, torch.zeros(c), torch.ones(c), None, None, r, code, param, 0.0, save_for_backward=True
    )
    assert stats is not None
    kept = None if bits is not None else r
    needs = (True, False, False, residual)
    dx, _, _, dr = flat.batch_norm_backward(
        torch.ones_like(x), x, None, None, kept, bits, stats, code, param, training=False, needs=needs
    )
    assert dx is not None
    if dr is not None:
        torch.testing.assert_close(dr, dx, rtol=0, atol=0, equal_nan=True)
    return y.flatten()[: z.numel()], dx.flatten()[: z.numel()]


@each
def test_the_reference_is_torchs_function(code: int) -> None:
    module, value, derivative = CASES[code]
    z = torch.linspace(-8, 8, 1000, dtype=torch.float64, requires_grad=True)
    y = module(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    torch.testing.assert_close(value(z), y, rtol=1e-12, atol=1e-14)
    # the double derivative of torch's hardsigmoid has a float32 1 / 6
    torch.testing.assert_close(derivative(z), slope, rtol=1e-7, atol=1e-14)
    assert act.resolve(module).code == code


def test_every_code_is_held_here_and_known_to_surgery() -> None:
    assert set(CASES) == set(act.CODES) == native.FUSED_ACTIVATIONS
    for code, (module, _, _) in CASES.items():
        assert code == act.IDENTITY or act.resolve(activations.of_module(module)).code == code


@each
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("layout", ["planar", "rows"])
def test_value_and_derivative_hold_their_bounds(isa: str, layout: str, residual: bool, code: int) -> None:
    for dtype in DTYPES:
        z = grid(dtype)
        computed = torch.float64 if dtype == torch.float64 else torch.float32
        at_kink = torch.isin(z.abs().double(), torch.tensor([0.0, 3.0, 6.0], dtype=torch.float64))
        for found, function, what in zip(run(z, code, layout, residual), CASES[code][1:], ("y", "dy/dz"), strict=True):
            bound = roundings_bound(function, z.double(), unit_roundoff(computed))
            bound += function(z.double()).abs() * unit_roundoff(dtype)
            bound += 400 * underflow(computed)  # a subnormal e^-|s| times z, or times z s': 3 * 104 in gelu's tanh form
            if what == "dy/dz":
                bound[at_kink] = torch.inf  # a finite difference across it says nothing; the next test looks at kinks
            assert_within(found, function(z.double()), bound.nan_to_num(nan=torch.inf), f"{what} {dtype}")


@each
@pytest.mark.parametrize("layout", ["planar", "rows"])
def test_infinity_nan_and_kinks_are_torchs(isa: str, layout: str, code: int) -> None:
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 3.0, -3.0, 6.0], dtype=torch.float64)
    z = special.clone().requires_grad_()
    y = CASES[code][0](z)  # in float64: torch's gelu of infinity is NaN in float32
    (slope,) = torch.autograd.grad(y.sum(), z)
    real = slope.isfinite() & ~z.isnan()
    if torch.__version__ < (2, 8):  # type: ignore[operator]  # hardswish had another slope at its kinks
        real &= z.detach().abs() != 3
    for dtype in DTYPES:
        found, found_slope = run(special.to(dtype), code, layout, residual=True)
        torch.testing.assert_close(found, y.detach().to(dtype), equal_nan=True)
        torch.testing.assert_close(found_slope[real], slope[real].to(dtype))
