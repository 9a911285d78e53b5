"""The native kernels in float64, bfloat16 and float16: statistics as in float32, one rounding of the output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit.contract import input_gradient_bound, mean_over, output_bound, parameter_gradient_bound, unit_roundoff
from normkit.kernels import native
from normkit.reference.batch_norm import batch_norm, batch_norm_backward, channel_axes, per_channel
from normkit.reference.group_norm import group_norm
from normkit.reference.layer_norm import layer_norm, layer_norm_backward
from tests import cases
from tests.kernels import flat
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_same, assert_statistics, assert_within

pytestmark = needs_native
EPS = cases.EPS
DTYPES = {name: dtype for name, dtype in cases.DTYPES.items() if native.supports_dtype(dtype)}
HALVES = {name: dtype for name, dtype in DTYPES.items() if dtype.itemsize == 2}
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_layout = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


def test_four_dtypes_are_served() -> None:
    assert set(DTYPES) == set(cases.DTYPES)


@each_layout
@each_dtype
def test_batch_norm_meets_the_contract_in_its_dtype(isa: str, dtype: torch.dtype, layout: str) -> None:
    u, axes = unit_roundoff(dtype), (0, 2, 3)
    for shape in ((4, 19, 5, 7), (2, 3, 17, 33), (3, 16, 8, 8)):
        g = cases.generator()
        # Parameters are float32 beside halves, as in mixed precision, and of the input's dtype beside float64.
        w, b = (t.to(torch.promote_types(dtype, torch.float32)) for t in cases.affine(shape[1], g))
        x, dy = (cases.LAYOUTS[layout](cases.gaussian(shape, g, 3.0).to(dtype)) for _ in range(2))
        y, stats, _ = flat.batch_norm_forward(x, w, b, None, 0, 0.0, EPS, save_for_backward=True)
        found = flat.batch_norm_backward(
            dy, x, w, b, None, None, stats, 0, 0.0, training=True, needs=(True, True, True, False)
        )
        x64, w64, b64, dy64 = (t.double() for t in (x, w, b, dy))
        y64, mean64, var64 = batch_norm(x64, w64, b64, EPS)
        rstd = per_channel(1 / (var64 + EPS).sqrt(), x, 1)
        xhat = (x64 - per_channel(mean64, x, 0)) * rstd
        assert y.dtype == dtype
        assert y.stride() == x.stride()
        assert_statistics(stats[0], stats[1], mean64, var64)
        assert_within(
            y, y64, output_bound(spread(xhat, 3, dtype), per_channel(w64, x, 1), per_channel(b64, x, 0), u), "y"
        )
        dx64, dweight64, dbias64 = batch_norm_backward(dy64, x64, w64, EPS)
        bound = input_gradient_bound(dy64 * per_channel(w64, x, 1), xhat, rstd, mean_over(channel_axes(x)), u)
        both = 2 if dtype == torch.float64 else 1  # then the reference rounds as we do
        assert_within(found[0], dx64, both * bound, "dx")
        sums = unit_roundoff(torch.promote_types(dtype, torch.float32))
        assert_within(found[1], dweight64, parameter_gradient_bound(dy64 * xhat, axes, sums), "dweight")
        assert_within(found[2], dbias64, parameter_gradient_bound(dy64, axes, sums), "dbias")


@each_layout
@each_dtype
def test_row_norms_round_once(isa: str, dtype: torch.dtype, layout: str) -> None:
    g, u = cases.generator(), unit_roundoff(dtype)
    x = cases.LAYOUTS[layout](cases.gaussian((3, 18, 5, 7), g, 3.0).to(dtype))
    w, b = (t.to(dtype) for t in cases.affine(18, g))
    y, _, _ = flat.group_norm_forward(x, 6, w, b, None, 0, 0.0, EPS, save_for_backward=True)
    xhat, _, _ = group_norm(x.double(), 6, None, None, EPS)
    w64, b64 = per_channel(w.double(), x, 1), per_channel(b.double(), x, 0)
    assert_within(y, xhat * w64 + b64, output_bound(spread(xhat, 3, dtype), w64, b64, u), "group norm")
    rows, dy = (cases.gaussian((37, 50), g, 3.0).to(dtype) for _ in range(2))
    w, b = (t.to(dtype) for t in cases.affine(50, g))
    y, stats = flat.layer_norm_forward(rows, 50, w, b, EPS)
    assert stats is not None
    xhat, _, var64 = layer_norm(rows.double(), (50,), None, None, EPS)
    assert_within(
        y, xhat * w.double() + b.double(), output_bound(spread(xhat, 3, dtype), w.double(), b.double(), u), "layer norm"
    )
    dx = flat.layer_norm_backward(dy, rows, 50, w, b, stats, needs=(True, False, False))[0]
    dx64 = layer_norm_backward(dy.double(), rows.double(), (50,), w.double(), EPS)[0]
    rstd = 1 / (var64 + EPS).sqrt().unsqueeze(-1)
    assert dx is not None
    assert_within(dx, dx64, input_gradient_bound(dy.double() * w.double(), xhat, rstd, mean_over((1,)), u), "dx")


def spread(xhat: Tensor, kappa: float, dtype: torch.dtype) -> Tensor:
    """What the output's bound is relative to: xhat; in float64, where the mean has no wider type to be kept in, the
    rounding of the mean (kappa standard deviations from zero) counts too."""
    return xhat.abs() + (1 + kappa if dtype == torch.float64 else 0)


def through(x: Tensor, weight: float) -> Tensor:
    """weight * x, by a batch norm whose statistics are constants: one product in float32, one rounding."""
    channels = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    scale = torch.full((x.shape[1],), weight)
    return flat.batch_norm_inference(x, *channels, scale, None, None, 0, 0.0, 0.0, save_for_backward=False)[0]


@pytest.mark.parametrize("weight", [1.0, 1.0 + 2.0**-9, 0.3333333, 2.0**-12, 3.0e4])
@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_all_65536_halves_convert_and_round_as_in_torch(isa: str, dtype: torch.dtype, weight: float) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for x in (every.view(1, 4, -1), every.view(-1, 256), every[:-7].view(1, 3, -1)):  # planes, rows, and with tails
        y, expected = through(x, weight), (x.float() * weight).to(dtype)
        assert torch.equal(y.isnan(), expected.isnan())
        real = ~expected.isnan()
        assert torch.equal(y[real], expected[real])  # -0 may come out as 0: a zero shift is added


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_parameters_and_their_gradients_may_be_halves(dtype: torch.dtype) -> None:
    g = cases.generator()
    x, dy = (cases.gaussian((6, 5, 4), g).to(dtype) for _ in range(2))
    w, b = (t.to(dtype) for t in cases.affine(5, g))
    wide = flat.batch_norm_forward(x, w.float(), b.float(), None, 1, 0.0, EPS, save_for_backward=True)
    narrow = flat.batch_norm_forward(x, w, b, None, 1, 0.0, EPS, save_for_backward=True)
    assert_same(narrow[0], wide[0])
    gradients = [
        flat.batch_norm_backward(
            dy, x, p, q, None, None, wide[1], 1, 0.0, training=True, needs=(True, True, True, False)
        )
        for p, q in ((w, b), (w.float(), b.float()))
    ]
    for a, e in zip(gradients[0][:3], gradients[1][:3], strict=True):
        assert a is not None
        assert e is not None
        assert_same(a, e.to(dtype))
