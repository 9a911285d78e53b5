"""The native group, instance, layer and RMS norm against float64, within the contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit.contract import (
    input_gradient_bound,
    mean_over,
    output_bound,
    parameter_gradient_bound,
    underflow,
    unit_roundoff,
)
from normkit.reference.batch_norm import channel_axes, per_channel
from normkit.reference.group_norm import group_axes, group_norm, group_norm_backward, split_groups
from normkit.reference.layer_norm import layer_norm, layer_norm_backward
from normkit.reference.rms_norm import rms_norm, rms_norm_backward
from tests import cases
from tests.kernels import flat
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_same, assert_within

pytestmark = needs_native
EPS = cases.EPS
U = unit_roundoff(torch.float32)
# Beside the shared table: a slab cut into parts, segments of a row, samples cut into blocks of rows.
GROUPS = {
    **cases.GROUPS,
    "parts": ((1, 4, 96, 96), 2),
    "segments": ((1, 2, 150, 151), 1),
    "many_samples": ((17, 38, 3, 3), 19),
}
VALUES = [v for v in cases.VALUES if v != "constant_channel"]  # a channel of a group is not its statistic


def check_group(shape: tuple[int, ...], groups: int, values: str, layout: str) -> None:
    g = cases.generator()
    w, b = (t.float() for t in cases.affine(shape[1], g))
    x = cases.LAYOUTS[layout](cases.VALUES[values](shape, g).float())
    dy = cases.gaussian(shape, g).float()
    y, stats, _ = flat.group_norm_forward(x, groups, w, b, None, 0, 0.0, EPS, save_for_backward=True)
    assert stats is not None
    x64, w64, b64, dy64 = (t.double() for t in (x, w, b, dy))
    y64, mean64, var64 = group_norm(x64, groups, w64, b64, EPS)
    xg = split_groups(x64, groups)
    wide = (*mean64.shape, *[1] * (xg.ndim - 2))
    rstd = (1 / (var64 + EPS).sqrt()).reshape(wide)
    xhat = (xg - mean64.reshape(wide)) * rstd
    rows_of = xhat.reshape(x.shape)
    assert_within(y, y64, output_bound(rows_of, per_channel(w64, x, 1), per_channel(b64, x, 0), U), "y")
    dx, dweight, dbias, _ = flat.group_norm_backward(
        dy, x, groups, w, b, None, None, stats, 0, 0.0, needs=(True, True, True, False)
    )
    dx64, dweight64, dbias64 = group_norm_backward(dy64, x64, groups, w64, EPS)
    dxhat = split_groups(dy64 * per_channel(w64, x, 1), groups)
    bound = input_gradient_bound(dxhat, xhat, rstd, mean_over(group_axes(xg)), U).reshape(x.shape)
    assert_within(dx, dx64, bound, "dx")
    assert_within(dweight, dweight64, parameter_gradient_bound(dy64 * rows_of, channel_axes(x), U), "dweight")
    assert_within(dbias, dbias64, parameter_gradient_bound(dy64, channel_axes(x), U), "dbias")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(("shape", "groups"), GROUPS.values(), ids=GROUPS)
def test_group_norm_meets_the_contract(isa: str, shape: tuple[int, ...], groups: int, layout: str) -> None:
    check_group(shape, groups, "standard", layout)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("values", VALUES)
def test_group_norm_meets_the_contract_for_every_value_regime(values: str, layout: str) -> None:
    check_group((3, 6, 9, 5), 3, values, layout)
    check_group((3, 6, 9, 5), 6, values, layout)


def check_layer(rows: int, width: int, values: str, rms: bool) -> None:
    g = cases.generator()
    w, b = (t.float() for t in cases.affine(width, g))
    x, dy = cases.VALUES[values]((rows, width), g).float(), cases.gaussian((rows, width), g).float()
    x64, w64, b64, dy64 = (t.double() for t in (x, w, b, dy))
    dx64, dbias, dbias64 = torch.empty(0), None, torch.empty(0)
    if rms:
        y, stats = flat.rms_norm_forward(x, width, w, EPS)
        y64, var64 = rms_norm(x64, (width,), w64, EPS)
        mean64, b64 = torch.zeros_like(var64), torch.zeros_like(b64)
        assert stats is not None
        dx, dweight = flat.rms_norm_backward(dy, x, width, w, stats, needs=(True, True))
        dx64, dweight64 = rms_norm_backward(dy64, x64, (width,), w64, EPS)
    else:
        y, stats = flat.layer_norm_forward(x, width, w, b, EPS)
        y64, mean64, var64 = layer_norm(x64, (width,), w64, b64, EPS)
        assert stats is not None
        dx, dweight, dbias = flat.layer_norm_backward(dy, x, width, w, b, stats, needs=(True, True, True))
        dx64, dweight64, dbias64 = layer_norm_backward(dy64, x64, (width,), w64, EPS)
    rstd = 1 / (var64 + EPS).sqrt().unsqueeze(-1)
    xhat = (x64 - mean64.unsqueeze(-1)) * rstd
    step = w64.abs() * underflow(torch.float32)  # xhat is rounded too, and near 0 by a step of its own
    assert_within(y, y64, output_bound(xhat, w64, b64, U) + step, "y")
    assert_within(dx, dx64, input_gradient_bound(dy64 * w64, xhat, rstd, mean_over((1,)), U), "dx")
    assert_within(dweight, dweight64, parameter_gradient_bound(dy64 * xhat, (0,), U), "dweight")
    if dbias is not None:
        assert_within(dbias, dbias64, parameter_gradient_bound(dy64, (0,), U), "dbias")


@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
def test_layer_and_rms_norm_meet_the_contract(isa: str, rms: bool) -> None:
    for rows, width in ((1, 5), (3, 1), (6, 8), (67, 33), (5, 130), (1030, 48), (3, 20000), (67, 16401), (1, 33333)):
        check_layer(rows, width, "standard", rms)


@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize("values", VALUES)
def test_layer_and_rms_norm_meet_the_contract_for_every_value_regime(values: str, rms: bool) -> None:
    check_layer(37, 50, values, rms)


def test_layer_norm_meets_the_contract_where_most_of_dy_is_zero() -> None:
    """A gradient of zero is allowed what the two sums allow, and those may nearly cancel."""
    for width in range(2, 34):
        for seed in range(8):
            g = torch.Generator().manual_seed(100 * width + seed)
            x, dy = cases.gaussian((9, width), g).float() + 5, cases.gaussian((9, width), g).float()
            check_layer_gradients(x, dy * (torch.rand(dy.shape, generator=g) < 0.4))


def check_layer_gradients(x: Tensor, dy: Tensor) -> None:
    width, weight = x.shape[1], torch.linspace(0.5, 2, x.shape[1])
    _, stats = flat.layer_norm_forward(x, width, weight, None, EPS)
    assert stats is not None
    dx = flat.layer_norm_backward(dy, x, width, weight, None, stats, needs=(True, False, False))[0]
    assert dx is not None
    x64, dxhat = x.double(), dy.double() * weight.double()
    rstd = 1 / (x64.var(1, correction=0, keepdim=True) + EPS).sqrt()
    bound = input_gradient_bound(dxhat, (x64 - x64.mean(1, keepdim=True)) * rstd, rstd, mean_over((1,)), U)
    assert_within(dx, layer_norm_backward(dy.double(), x64, (width,), weight.double(), EPS)[0], bound, "dx")


def results(x: Tensor, dy: Tensor, w: Tensor) -> list[Tensor | None]:
    y, stats, _ = flat.group_norm_forward(x, 4, w, w, None, 0, 0.0, EPS, save_for_backward=True)
    assert stats is not None
    found = flat.group_norm_backward(dy, x, 4, w, w, None, None, stats, 0, 0.0, needs=(True, True, True, False))
    rows, row_dy = x.flatten(1).contiguous(), dy.flatten(1).contiguous()
    ln, ln_stats = flat.layer_norm_forward(rows, rows.shape[1], None, None, EPS)
    assert ln_stats is not None
    dln = flat.layer_norm_backward(row_dy, rows, rows.shape[1], None, None, ln_stats, needs=(True, False, False))[0]
    return [y, stats, *found[:3], ln, ln_stats, dln, *narrow_results(x.movedim(1, -1), row_dy, w)]


def narrow_results(x: Tensor, dy: Tensor, w: Tensor) -> list[Tensor | None]:
    """Layer norm over the channels, with parameters."""
    x = x.contiguous()
    y, stats = flat.layer_norm_forward(x, w.numel(), w, w, EPS)
    assert stats is not None
    return [y, *flat.layer_norm_backward(dy.reshape(x.shape), x, w.numel(), w, w, stats, needs=(True, True, True))]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 8, 96, 96), (18, 16, 7, 7)], ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...], layout: str) -> None:
    g = cases.generator()
    x, dy = (cases.LAYOUTS[layout](cases.gaussian(shape, g).float()) for _ in range(2))
    w, before, found = cases.affine(shape[1], g)[0].float(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(x, dy, w))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a is not None
            assert b is not None
            assert_same(a, b)
