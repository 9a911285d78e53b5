"""The native batch norm against float64: every layout, value regime and instruction set, within the contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit._activation import NONE
from normkit._operands import Needs, Operands, Saved
from normkit.contract import input_gradient_bound, mean_over, output_bound, parameter_gradient_bound, unit_roundoff
from normkit.kernels import native
from normkit.reference.batch_norm import (
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
    channel_axes,
    per_channel,
)
from tests import cases
from tests.kernels import flat
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_same, assert_statistics, assert_within

pytestmark = needs_native
EPS = cases.EPS
U = unit_roundoff(torch.float32)
LAYOUTS = {"contiguous", "channels_last", "strided", "offset", "transposed"}
ALL = (True, True, True, True)
# Shapes that take each way through the plans: several channels a task, parts of a channel, blocks of rows.
SHAPES = {
    **cases.SHAPES,
    "planar_grouped": (3, 19, 7, 7),
    "planar_parts": (2, 3, 150, 150),
    "planar_segments": (1, 2, 150, 151),
    "nc_blocks": (1027, 129),
    "rows_in_one": (8, 3, 64, 64),  # of few channels, channels last; several blocks of such rows
    "rows_in_one_nc": (1024, 20),
}


def tensors(shape: tuple[int, ...], values: str, layout: str = "contiguous") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = cases.generator()
    weight, bias = cases.affine(shape[1], g)
    x = cases.LAYOUTS[layout](cases.VALUES[values](shape, g).float())
    return x, weight.float(), bias.float(), cases.gaussian(shape, g).float()


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    y, stats, _ = flat.batch_norm_forward(x, weight, bias, None, 0, 0.0, EPS, save_for_backward=True)
    return y, stats


def check(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, statistics: bool = True) -> None:
    y, stats = forward(x, weight, bias)
    x64, w64, b64, dy64 = (t.double() for t in (x, weight, bias, dy))
    y64, mean64, var64 = batch_norm(x64, w64, b64, EPS)
    rstd = 1 / (var64 + EPS).sqrt()
    axes = channel_axes(x)
    expand = lambda v: per_channel(v, x, 0.0)  # noqa: E731  # local shorthand
    xhat = (x64 - expand(mean64)) * expand(rstd)
    if statistics:
        assert_statistics(stats[0], stats[1], mean64, var64)
    assert_within(y, y64, output_bound(xhat, expand(w64), expand(b64), U), "y")
    dx, dweight, dbias, _ = flat.batch_norm_backward(
        dy, x, weight, bias, None, None, stats, 0, 0.0, training=True, needs=(True, True, True, False)
    )
    dx64, dweight64, dbias64 = batch_norm_backward(dy64, x64, w64, EPS)
    assert_within(dx, dx64, input_gradient_bound(dy64 * expand(w64), xhat, expand(rstd), mean_over(axes), U), "dx")
    assert_within(dweight, dweight64, parameter_gradient_bound(dy64 * xhat, axes, U), "dweight")
    assert_within(dbias, dbias64, parameter_gradient_bound(dy64, axes, U), "dbias")


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_layout_meets_the_contract(shape: tuple[int, ...], layout: str) -> None:
    check(*tensors(shape, "standard", layout))


@pytest.mark.parametrize("values", cases.VALUES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_value_regime_meets_the_contract(isa: str, values: str, layout: str) -> None:
    for shape in ((9, 19, 5, 7), (4, 3, 96, 96), (67, 21)):
        # Statistics are promised to kappa = 1e4; the 1e-40 values lie on a grid of 1e-45 that bounds them instead.
        check(*tensors(shape, values, layout), statistics=values not in ("kappa_1e6", "denormal"))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_odd_sizes_leave_no_element_out(isa: str, layout: str) -> None:
    for size in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 130):
        check(*tensors((2, 3, size, 2), "kappa_1e2", layout))
        check(*tensors((2, size, 3, 1), "kappa_1e2", layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape", [(8, 32, 28, 28), (2, 3, 150, 150), (1027, 129), (3, 70, 7, 7), (8, 3, 64, 64)], ids=str
)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...], layout: str) -> None:
    x, weight, bias, dy = tensors(shape, "kappa_1e2", layout)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            y, stats = forward(x, weight, bias)
            gradients = flat.batch_norm_backward(
                dy, x, weight, bias, None, None, stats, 0, 0.0, training=True, needs=(True, True, True, False)
            )[:3]
            found.append((y, stats, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("size", [14, 15, 28], ids=["staged", "odd", "aligned"])  # rows of 196, 225 and 784 elements
def test_outputs_that_bypass_the_cache_have_the_bits_of_those_that_do_not(isa: str, size: int) -> None:
    few, g = 37, cases.generator()
    x, dy, r = (cases.gaussian((5, 24 * 2**20 // (20 * size**2) + few, size, size), g) for _ in range(3))

    def run(x: Tensor, dy: Tensor, r: Tensor) -> tuple[Tensor | None, ...]:
        y, stats, bits = flat.batch_norm_forward(x, None, None, r, 1, 0.0, EPS, save_for_backward=True)
        dx, _, _, dr = flat.batch_norm_backward(dy, x, None, None, r, bits, stats, 1, 0.0, training=True, needs=ALL)
        return y, dx, dr

    for whole, part in zip(run(x, dy, r), run(*(t[:, -few:].contiguous() for t in (x, dy, r))), strict=True):
        assert whole is not None
        assert_same(whole[:, -few:], part)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_the_output_keeps_shape_dtype_and_memory_format(layout: str) -> None:
    x, weight, bias, _ = tensors((4, 6, 5, 7), "standard", layout)
    y, _ = forward(x, weight, bias)
    assert y.stride() == torch.empty_like(x).stride() if layout != "strided" else y.is_contiguous()
    assert y.dtype == x.dtype


def test_gradients_in_another_layout_and_expanded_ones_are_read_right() -> None:
    x, weight, bias, dy = tensors((4, 6, 5, 7), "standard")
    _, stats = forward(x, weight, bias)

    def gradients(g: Tensor) -> tuple[Tensor | None, ...]:
        return flat.batch_norm_backward(
            g, x, weight, bias, None, None, stats, 0, 0.0, training=True, needs=(True, True, True, False)
        )[:3]

    for g in (dy, torch.ones(()).expand(dy.shape)):
        for layout in ("channels_last", "strided", "transposed"):
            for a, b in zip(gradients(g), gradients(cases.LAYOUTS[layout](g)), strict=True):
                assert_same(a, b)


def test_given_statistics_are_constants() -> None:
    x, weight, bias, dy = tensors((4, 6, 5, 7), "standard", "channels_last")
    mean, var = torch.linspace(-1, 1, 6), torch.linspace(0.5, 2, 6)
    y, stats, _ = flat.batch_norm_inference(x, mean, var, weight, bias, None, 0, 0.0, EPS, save_for_backward=True)
    assert stats is not None
    x64, w64, b64, dy64 = (t.double() for t in (x, weight, bias, dy))
    y64 = batch_norm_inference(x64, mean.double(), var.double(), w64, b64, EPS)
    rstd, axes = per_channel(1 / (var.double() + EPS).sqrt(), x, 1), channel_axes(x)
    xhat = (x64 - per_channel(mean.double(), x, 0)) * rstd
    assert_within(y, y64, output_bound(xhat, per_channel(w64, x, 1), per_channel(b64, x, 0), U), "y")
    dx, dweight, dbias, _ = flat.batch_norm_backward(
        dy, x, weight, bias, None, None, stats, 0, 0.0, training=False, needs=(True, True, True, False)
    )
    expected = dy64 * per_channel(w64, x, 1) * rstd
    assert_within(dx, expected, 4 * U * expected.abs(), "dx")
    assert_within(dweight, (dy64 * xhat).sum(axes), parameter_gradient_bound(dy64 * xhat, axes, U), "dweight")
    assert_within(dbias, dy64.sum(axes), parameter_gradient_bound(dy64, axes, U), "dbias")


def test_a_non_finite_channel_does_not_touch_its_neighbours(isa: str) -> None:
    for layout in ("contiguous", "channels_last"):
        x, weight, bias, _ = tensors((4, 20, 5, 7), "standard", layout)
        clean, _ = forward(x, weight, bias)
        x[1, 3, 2, 2], x[2, 7, 0, 0] = float("inf"), float("nan")
        y, stats = forward(x, weight, bias)
        bad = torch.zeros(20, dtype=torch.bool)
        bad[[3, 7]] = True
        assert y[:, bad].isnan().all()
        assert stats[1][bad].isnan().all()
        assert_same(y[:, ~bad], clean[:, ~bad])


def test_running_statistics_move_unbiased_or_not_at_all() -> None:
    stats = torch.tensor([[2.0, -1.0], [4.0, 1.0], [0.5, 1.0]], dtype=torch.float64)
    mean, var = torch.zeros(2), torch.ones(2)
    assert native.move_running(stats, 5, mean, var, None, 0.1)
    assert_within(mean, torch.tensor([0.2, -0.1]), U * 0.2)
    assert_within(var, torch.tensor([0.9 + 0.1 * 4.0 * 5 / 4, 0.9 + 0.1 * 5 / 4]), U * 2)
    for value in (float("nan"), float("inf"), 1e39):  # 1e39 is finite in float64 and not in the buffer
        bad, kept = stats.clone(), (mean.clone(), var.clone())
        bad[0, 1] = value
        assert native.move_running(bad, 5, mean, var, None, 1.0) is False
        assert_same(mean, kept[0])
        assert_same(var, kept[1])


def test_an_empty_batch_gives_empty_outputs_and_zero_gradients() -> None:
    x, weight, bias = torch.empty(0, 3, 4), torch.ones(3), torch.zeros(3)
    y, stats = forward(x, weight, bias)
    assert y.shape == x.shape
    dx, dweight, dbias, _ = flat.batch_norm_backward(
        y, x, weight, bias, None, None, stats, 0, 0.0, training=True, needs=(True, True, True, False)
    )
    assert dx is not None
    assert dx.shape == x.shape
    assert_same(dweight, torch.zeros(3))
    assert_same(dbias, torch.zeros(3))


@pytest.mark.parametrize("shape", [(16, 8), (4, 6, 7, 7), (3, 20, 14, 14), (2, 3, 300, 300)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["planar", "last"])
def test_the_statistics_alone_are_those_of_the_forward(shape: tuple[int, ...], channels_last: bool, isa: str) -> None:
    x = torch.randn(shape)
    if channels_last and len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    _, stats, _ = flat.batch_norm_forward(x, None, None, None, 0, 0.0, 0.0, save_for_backward=True)
    assert_same(native.batch_norm_statistics(x), stats)


def test_values_that_do_not_count_leave_the_gradient_of_the_others(isa: str) -> None:
    x, dy = torch.randn(6, 3, 5, dtype=torch.float64), torch.randn(6, 3, 5, dtype=torch.float64)
    real = x[:4]  # the last two samples hold each channel's mean: they add nothing to the sums about it
    stats = flat.batch_norm_forward(real, None, None, None, 0, 0.0, EPS, save_for_backward=True)[1]
    x[4:] = stats[0].reshape(1, 3, 1)
    dy[4:] = 0.0
    needs = (True, False, False, False)
    for layout in (torch.contiguous_format, torch.channels_last):
        padded, gradient = (t.unsqueeze(-1).contiguous(memory_format=layout) for t in (x, dy))
        mask = torch.tensor([True] * 4 + [False] * 2).reshape(6, 1, 1, 1)
        operands = Operands(padded, mask=mask)
        dx = native.batch_norm_backward(gradient, operands, Saved(stats), NONE, Needs(*needs), training=True)[0]
        expected = flat.batch_norm_backward(
            dy[:4], real, None, None, None, None, stats, 0, 0.0, training=True, needs=needs
        )[0]
        assert dx is not None
        assert expected is not None
        torch.testing.assert_close(dx[:4].squeeze(-1), expected, rtol=1e-12, atol=1e-12)
