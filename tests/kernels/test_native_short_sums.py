"""Statistics of bfloat16, partly summed in float32: the contract holds where those sums are at their worst."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit.contract import parameter_gradient_bound, unit_roundoff
from normkit.reference.batch_norm import batch_norm, batch_norm_backward
from tests import cases
from tests.kernels import flat
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_same, assert_statistics, assert_within

pytestmark = needs_native
EPS = cases.EPS
ROWS, CHANNELS = 1024, 37

# A pattern repeats down the rows, so that every four rows that are added together look like it.
PATTERNS = {
    "one_small_of_four": (1.0, 1.0, 1.0, 2.0**-9 * 1.2421875),
    "two_small_of_four": (1.0, 2.0**-18 * 1.9921875, 1.0, 2.0**-17 * 1.5078125),
    "small_beside_large": (1.9921875, 2.0**-17, 1.9921875, 2.0**-16 * 1.3359375),
    "far_from_zero": (100.0, 100.5, 99.5, 100.0),
    "signs": (1.0, -1.0078125, 1.015625, -(2.0**-14)),
    "one_binade_apart": (0.99609375, 1.0078125, 1.0, 1.0078125),
    "constant": (3.140625,) * 4,
    "zeros": (0.0,) * 4,
    "squares_overflow_float32": (1e30, -3e30, 2e30, 1.5e30),
    "squares_underflow_float32": (1e-30, 3e-30, -2e-30, 1e-33),
}


def columns(pattern: tuple[float, ...]) -> Tensor:
    """(ROWS, CHANNELS) bfloat16: the pattern, and a few rows with it shifted, so that channels differ."""
    x = torch.tensor(pattern).repeat(ROWS // 4).unsqueeze(1).repeat(1, CHANNELS)
    for c in range(CHANNELS):
        x[:, c] = x[:, c].roll(c % 4)
    return x.to(torch.bfloat16)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_statistics_hold_where_short_sums_are_at_their_worst(isa: str, pattern: tuple[float, ...]) -> None:
    rows = columns(pattern)
    images = rows.view(4, 16, 16, CHANNELS).permute(0, 3, 1, 2)
    planar = (
        images.contiguous(),
        rows.t().contiguous().view(1, CHANNELS, -1),
        rows.view(-1, 8, CHANNELS).transpose(1, 2),
    )
    for x in (rows, rows[:-3], images, *planar, planar[1][..., :-3], planar[2][:-3].contiguous()):
        _, stats, _ = flat.batch_norm_forward(x, None, None, None, 0, 0.0, EPS, save_for_backward=True)
        _, mean, var = batch_norm(x.double(), None, None, EPS)
        assert_statistics(stats[0], stats[1], mean, var)


@pytest.mark.parametrize("kappa", [0.0, 1.0, 30.0, 1e3])
def test_statistics_hold_for_random_values(isa: str, kappa: float) -> None:
    g = cases.generator()
    for shape in ((5, 19, 7, 9), (4099, 21), (2, 48, 33, 17), (3, 2, 140, 150)):
        x = cases.gaussian(shape, g, kappa).to(torch.bfloat16)
        for layout in (x, x.contiguous(memory_format=torch.channels_last)) if x.dim() == 4 else (x,):
            _, stats, _ = flat.batch_norm_forward(layout, None, None, None, 0, 0.0, EPS, save_for_backward=True)
            _, mean, var = batch_norm(x.double(), None, None, EPS)
            assert_statistics(stats[0], stats[1], mean, var)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_statistics_of_groups_hold_where_short_sums_are_at_their_worst(isa: str, pattern: tuple[float, ...]) -> None:
    x = torch.tensor(pattern).repeat(2 * 6 * 60).view(2, 6, 240).to(torch.bfloat16)
    for part in (x, x[..., :147].contiguous()):  # rows that start anywhere
        _, stats, _ = flat.group_norm_forward(part, 2, None, None, None, 0, 0.0, EPS, save_for_backward=True)
        _, mean, var = batch_norm(part.double().reshape(1, 4, -1), None, None, EPS)
        assert_statistics(stats[0].flatten(), stats[1].flatten(), mean, var)


def test_one_channel_out_of_range_changes_no_other(isa: str) -> None:
    rows = cases.gaussian((515, CHANNELS), cases.generator()).to(torch.bfloat16)
    odd = rows.clone()
    odd[7, 3], odd[9, 35], odd[:, 20] = 1e30, float("inf"), 0.0
    for x, y in (
        (rows, odd),
        (rows.view(5, 103, CHANNELS).mT.contiguous(), odd.view(5, 103, CHANNELS).mT.contiguous()),
    ):
        plain, found = (
            flat.batch_norm_forward(t, None, None, None, 0, 0.0, EPS, save_for_backward=True)[1] for t in (x, y)
        )
        others = [c for c in range(CHANNELS) if c not in (3, 20, 35)]
        assert_statistics(found[0][others], found[1][others], plain[0][others], plain[1][others])
        assert found[:, 35].isnan().any()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_parameter_gradients_hold_at_every_scale(isa: str, scale: float, layout: torch.memory_format) -> None:
    g = cases.generator()
    x, dy = (cases.gaussian((8, 35, 6, 7), g, 2.0) for _ in range(2))
    x, dy = (t.to(torch.bfloat16).contiguous(memory_format=layout) for t in (x * scale, dy))
    eps = EPS * scale**2
    weight = torch.ones(35)
    _, stats, _ = flat.batch_norm_forward(x, weight, weight, None, 0, 0.0, eps, save_for_backward=True)
    _, dweight, dbias, _ = flat.batch_norm_backward(
        dy, x, weight, weight, None, None, stats, 0, 0.0, training=True, needs=(True, True, True, False)
    )
    xhat, _, _ = batch_norm(x.double(), None, None, eps)
    _, dweight64, dbias64 = batch_norm_backward(dy.double(), x.double(), weight.double(), eps)
    u = unit_roundoff(torch.float32)
    assert_within(dweight, dweight64, parameter_gradient_bound(dy.double() * xhat, (0, 2, 3), u), "dweight")
    assert_within(dbias, dbias64, parameter_gradient_bound(dy.double(), (0, 2, 3), u), "dbias")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_an_infinite_eps_leaves_gradients_zero(isa: str, layout: torch.memory_format, dtype: torch.dtype) -> None:
    g = cases.generator()
    x, dy = (cases.gaussian((8, 35, 6, 7), g, 2.0).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    weight, needs = torch.ones(35), (True, True, True, False)
    _, stats, _ = flat.batch_norm_forward(x, weight, weight, None, 0, 0.0, torch.inf, save_for_backward=True)
    found = flat.batch_norm_backward(dy, x, weight, weight, None, None, stats, 0, 0.0, training=True, needs=needs)
    _, stats, _ = flat.group_norm_forward(x, 5, weight, weight, None, 0, 0.0, torch.inf, save_for_backward=True)
    assert stats is not None
    of_groups = flat.group_norm_backward(dy, x, 5, weight, weight, None, None, stats, 0, 0.0, needs=needs)
    for dx, dweight, dbias, _ in (found, of_groups):
        assert dx is not None
        assert dweight is not None
        assert dbias is not None
        assert not dx.any()
        assert not dweight.any()  # of sums of dz * xhat, over 1 / std: 0 / 0
        assert dbias.isfinite().all()


def test_the_number_of_threads_changes_no_bit_of_short_sums() -> None:
    x = cases.gaussian((8, 33, 28, 28), cases.generator(), 3.0).to(torch.bfloat16)
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                found.append(flat.batch_norm_forward(images, None, None, None, 0, 0.0, EPS, save_for_backward=True)[1])
        finally:
            torch.set_num_threads(before)
        for other in found[1:]:
            assert_same(found[0], other)
