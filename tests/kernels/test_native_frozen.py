"""The backward with given statistics, frozen batch norm: dx, dresidual and both sums of one sweep, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit.contract import parameter_gradient_bound, unit_roundoff
from normkit.reference.batch_norm import channel_axes, per_channel
from tests import cases
from tests.kernels import flat
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_same, assert_within

pytestmark = needs_native
EPS = cases.EPS
SHAPES = {
    "tiny_rows": (9, 5, 3),
    "samples_together": (39, 33, 4, 4),
    "parts_of_a_sample": (3, 130, 7, 7),
    "vectors_together": (5, 19, 14, 15),
    "segments": (2, 3, 150, 151),
    "streamed_by_way_of_a_stage": (32, 512, 10, 10),  # 6.5 MB and a residual
    "streamed": (16, 32, 56, 57),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RELU, LEAKY_RELU, SILU = 1, 2, 4
SLOPES = {0: 1.0, RELU: 0.0, LEAKY_RELU: 0.1}  # of the closed side


def given(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, residual, dy: shape; weight, bias, mean, var: (C,) float32."""
    g = cases.generator(5)
    x, residual, dy = (cases.gaussian(shape, g, 0.5).to(dtype) for _ in range(3))
    weight, bias = (t.float() for t in cases.affine(shape[1], g))
    return x, residual, dy, weight, bias, torch.linspace(-1, 1, shape[1]), torch.linspace(0.5, 2, shape[1])


def check(shape: tuple[int, ...], dtype: torch.dtype, code: int, with_residual: bool) -> None:
    x, residual, dy, weight, bias, mean, var = given(shape, dtype)
    r = residual if with_residual else None
    x64, w64, rstd = x.double(), per_channel(weight.double(), x, 1), per_channel(1 / (var.double() + EPS).sqrt(), x, 1)
    xhat = (x64 - per_channel(mean.double(), x, 0)) * rstd
    z = xhat * w64 + per_channel(bias.double(), x, 0) + (residual.double() if with_residual else 0.0)
    dy = dy.masked_fill(z.abs() < 1e-4, 0.0)
    dz = torch.where(z > 0, dy.double(), SLOPES[code] * dy.double())
    _, stats, bits = flat.batch_norm_inference(x, mean, var, weight, bias, r, code, 0.1, EPS, save_for_backward=True)
    needs = (True, True, True, with_residual)
    dx, dweight, dbias, dr = flat.batch_norm_backward(
        dy, x, weight, bias, None if bits is not None else r, bits, stats, code, 0.1, training=False, needs=needs
    )
    u, axes = unit_roundoff(dtype), channel_axes(x)
    own = max(u, unit_roundoff(torch.float32) if dtype != torch.float64 else u)
    wide = unit_roundoff(torch.float32)  # the parameters are float32
    assert_within(dx, dz * w64 * rstd, 4 * own * (dz * w64 * rstd).abs(), "dx")
    assert_within(dweight, (dz * xhat).sum(axes), parameter_gradient_bound(dz * xhat, axes, wide), "dweight")
    assert_within(dbias, dz.sum(axes), parameter_gradient_bound(dz, axes, wide), "dbias")
    if with_residual:
        assert_within(dr, dz, 4 * own * dz.abs(), "dresidual")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients_of_all_shapes(isa: str, shape: tuple[int, ...]) -> None:
    check(shape, torch.float32, RELU, True)
    check(shape, torch.bfloat16, 0, False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_behind_activations(isa: str, dtype: torch.dtype) -> None:
    for code in SLOPES:
        for with_residual in (False, True):
            check((7, 21, 5, 9), dtype, code, with_residual)


@pytest.mark.parametrize("code", [0, RELU, SILU])
def test_what_is_not_wanted_changes_nothing_else(isa: str, code: int) -> None:
    x, residual, dy, weight, bias, mean, var = given((6, 35, 7, 7), torch.float32)
    _, stats, bits = flat.batch_norm_inference(
        x, mean, var, weight, bias, residual, code, 0.0, EPS, save_for_backward=True
    )
    kept = None if bits is not None else residual

    def gradients(*needs: bool) -> tuple[Tensor | None, ...]:
        return flat.batch_norm_backward(dy, x, weight, bias, kept, bits, stats, code, 0.0, training=False, needs=needs)

    every = gradients(True, True, True, True)
    for needs in ((True, False, False, False), (False, True, True, False), (False, False, True, True)):
        for want, found, full in zip(needs, gradients(*needs), every, strict=True):
            if want:
                assert found is not None
                assert full is not None
                assert_same(found, full)


@pytest.mark.parametrize("shape", [(33, 37, 4, 4), (2, 64, 14, 14), (1, 2, 200, 200)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...]) -> None:
    x, _, dy, weight, bias, mean, var = given(shape, torch.bfloat16)
    _, stats, _ = flat.batch_norm_inference(x, mean, var, weight, bias, None, RELU, 0.0, EPS, save_for_backward=True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            needs = (True, True, True, False)
            found.append(
                flat.batch_norm_backward(dy, x, weight, bias, None, None, stats, RELU, 0.0, training=False, needs=needs)
            )
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0][:3], other[:3], strict=True):
            assert_same(one, two)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (39, 33, 4, 4), (2, 3, 150, 151)], ids=str)
def test_an_infinite_variance_makes_xhat_zero_and_its_gradients_too(
    isa: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, _, dy, weight, bias, mean, var = given(shape, dtype)
    var[0] = torch.inf
    for last in (False, True):  # rows, and planes
        x, dy = (t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t for t in (x, dy))
        _, stats, _ = flat.batch_norm_inference(x, mean, var, weight, bias, None, 0, 0.0, EPS, save_for_backward=True)
        assert stats is not None
        dx, dweight, dbias, _ = flat.batch_norm_backward(
            dy, x, weight, bias, None, None, stats, 0, 0.0, training=False, needs=(True, True, True, False)
        )
        assert dx is not None
        assert dweight is not None
        assert dbias is not None
        assert not dx[:, 0].any()
        assert dweight[0] == 0
        assert dweight.isfinite().all()
        terms = dy[:, 0].double()
        assert_within(
            dbias[0], terms.sum(), parameter_gradient_bound(terms, range(terms.dim()), unit_roundoff(torch.float32))
        )
