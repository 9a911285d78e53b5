"""The comparisons fail when they should, the tables are what they say; tests/docs holds the bounds to the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from normkit import reference
from normkit.contract import (
    output_bound,
    underflow,
    unit_roundoff,
)
from tests.cases import LAYOUTS, SHAPES, VALUES, Shape, gaussian, generator, random_mask
from tests.tolerances import assert_equal64, assert_same, assert_statistics, assert_within

ONES = torch.ones(3, dtype=torch.float64)
NAN_AT_1 = torch.tensor([1.0, float("nan"), 1.0], dtype=torch.float64)


@pytest.mark.parametrize("compare", [assert_same, assert_equal64, lambda a, b: assert_within(a, b, 1e9)])
@pytest.mark.parametrize(("actual", "expected"), [(NAN_AT_1, ONES), (ONES, NAN_AT_1), (NAN_AT_1, NAN_AT_1)])
def test_nan_fails_every_comparison(compare: Callable[..., None], actual: Tensor, expected: Tensor) -> None:
    with pytest.raises(AssertionError, match=r"worst at \(1,\)"):
        compare(actual, expected)


def test_a_value_on_the_bound_passes_and_one_beyond_it_fails_with_its_place() -> None:
    actual = ONES.clone()
    actual[2] += 0.25
    assert_within(actual, ONES, 0.25)
    with pytest.raises(AssertionError, match=r"y: 1 of 3 values .* worst at \(2,\): 1.25, expected 1.0, error 0.25"):
        assert_within(actual, ONES, 0.125, "y")


def test_another_shape_or_dtype_fails() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_within(ONES[None], ONES, 1.0)
    with pytest.raises(AssertionError, match="dtype"):
        assert_same(ONES.float(), ONES)


def test_same_means_every_bit() -> None:
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_same(torch.nextafter(ONES, 2 * ONES), ONES)
    assert_same(torch.tensor([0.0, float("1e-320")]), torch.tensor([-0.0, float("1e-320")]))


def test_underflow_is_the_smallest_subnormal() -> None:
    assert torch.tensor(underflow(torch.float32)).view(torch.int32) == 1


def test_rounding_the_exact_statistics_to_float32_holds_the_bounds_and_the_textbook_formula_does_not() -> None:
    x = gaussian((4096, 3), generator(1), mean=1e4).float()
    _, mean, var = reference.batch_norm(x.double(), None, None, 0.0)
    assert_statistics(mean.float(), var.float(), mean, var)
    naive = (x**2).mean(0) - x.mean(0) ** 2
    with pytest.raises(AssertionError, match="var"):
        assert_statistics(mean.float(), naive, mean, var)


def test_scale_and_shift_in_float32_breaks_the_output_bound_at_large_means() -> None:
    x = gaussian((4096, 3), generator(1), mean=1e4).float()
    y, mean, var = reference.batch_norm(x.double(), None, None, 1e-5)
    bound = output_bound(y, 1.0, 0.0, unit_roundoff(torch.float32))
    assert_within(y.float(), y, bound)
    rstd = (var + 1e-5) ** -0.5
    with pytest.raises(AssertionError, match="out of bounds"):
        assert_within(x * rstd.float() - (mean * rstd).float(), y, bound)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_keeps_the_values(layout: str, shape: Shape) -> None:
    x = gaussian(shape, generator(1))
    assert_same(LAYOUTS[layout](x), x)


def test_layouts_are_what_they_are_called() -> None:
    x = gaussian((4, 6, 5, 7), generator(1))
    laid = {name: layout(x) for name, layout in LAYOUTS.items()}
    assert laid["contiguous"].is_contiguous()
    assert laid["channels_last"].is_contiguous(memory_format=torch.channels_last)
    for name in ("strided", "transposed"):
        assert not laid[name].is_contiguous()
        assert not laid[name].is_contiguous(memory_format=torch.channels_last)
    assert laid["offset"].is_contiguous()
    assert laid["offset"].storage_offset() == 1


@pytest.mark.parametrize("values", VALUES)
def test_values_are_finite_in_float32(values: str) -> None:
    x = VALUES[values]((8, 3, 16), generator(1)).float()
    assert x.isfinite().all()
    assert x.any()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_random_mask_keeps_two_and_drops_one_if_it_can(shape: Shape) -> None:
    mask = random_mask(shape, generator(1))
    assert mask.shape == (shape[0], *shape[2:])
    assert mask.sum() >= 2
    assert not mask.all() or mask.numel() == 2
