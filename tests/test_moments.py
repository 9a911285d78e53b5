"""Moments: against numpy-like truth, under merging in any order and size, masked, differentiable, refusing nonsense."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import Moments
from tests.cases import LAYOUTS, gaussian, generator, random_mask
from tests.tolerances import assert_equal64, assert_same, assert_statistics

DIMS = {"batch": (0, 2, 3), "one": 1, "last": -1, "all": (0, 1, 2, 3), "unsorted": (3, 0)}


def data(shape: tuple[int, ...] = (5, 4, 3, 6), mean: float = 2.0) -> Tensor:
    return gaussian(shape, generator(1), mean=mean)


def assert_equal_moments(a: Moments, b: Moments) -> None:
    assert torch.equal(torch.as_tensor(a.count).expand(a.mean.shape), torch.as_tensor(b.count).expand(b.mean.shape))
    assert_equal64(a.mean, b.mean, "mean")
    assert_equal64(a.m2, b.m2, "m2")


@pytest.mark.parametrize("dim", DIMS.values(), ids=DIMS)
def test_of_is_count_mean_and_summed_squared_deviations(dim: int | tuple[int, ...]) -> None:
    x = data()
    moments = Moments.of(x, dim)
    assert moments.count == x.numel() // moments.mean.numel()
    assert_equal64(moments.mean, x.mean(dim))
    assert_equal64(moments.m2, ((x - x.mean(dim, keepdim=True)) ** 2).sum(dim))
    for correction in (0, 1, 0.5):
        assert_equal64(moments.var(correction=correction), x.var(dim, correction=correction))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_float32_input_is_summed_in_float64(mean: float, layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(data((50, 4, 3, 6), mean).float())
    moments = Moments.of(x, (0, 2, 3))
    assert moments.mean.dtype == torch.float64
    assert_statistics(
        moments.mean.float(), moments.var(correction=1).float(), x.double().mean((0, 2, 3)), x.double().var((0, 2, 3))
    )


@pytest.mark.parametrize("sizes", [(5, 0, 0), (1, 1, 3), (2, 3, 0), (0, 1, 4)], ids=str)
def test_merging_parts_in_any_order_is_the_whole(sizes: tuple[int, ...]) -> None:
    x = data()
    whole = Moments.of(x, (0, 2, 3))
    for parts in permutations(x.split(list(sizes))):
        a, b, c = (Moments.of(part, (0, 2, 3)) for part in parts)
        assert_equal_moments(a.merge(b).merge(c), whole)
        assert_equal_moments(a.merge(b.merge(c)), whole)


def test_merging_far_apart_sets_loses_nothing() -> None:
    """E[x^2] - E[x]^2 would keep 3 digits of a variance of 1 at a mean of 1e6; rounding the two means costs 1e-10."""
    a, b = data((4000,), 1e6), data((2000,), 1e6 + 3)
    whole = (torch.cat([a, b]) - 1e6).var()
    assert_equal64(Moments.of(a, 0).merge(Moments.of(b, 0)).var(correction=1), whole, factor=1e7)


def test_an_empty_set_is_neutral_and_finite() -> None:
    empty, x = Moments.of(torch.zeros(0, 3), 0), data((4, 3))
    assert empty.count == 0
    assert (empty.mean == 0).all()
    assert (empty.m2 == 0).all()
    assert_equal_moments(empty.merge(Moments.of(x, 0)), Moments.of(x, 0))
    assert_equal_moments(Moments.of(x, 0).merge(empty), Moments.of(x, 0))
    assert empty.merge(empty).count == 0


def test_a_masked_set_is_the_set_of_kept_values_whatever_lies_under_the_mask() -> None:
    x = data()
    mask = random_mask(tuple(x.shape), generator(2))
    kept = x.movedim(1, -1)[mask]
    for junk in (0.0, float("nan"), float("inf")):
        moments = Moments.of(x.masked_fill(~mask.unsqueeze(1), junk), (0, 2, 3), mask)
        assert_equal_moments(moments, Moments.of(kept, 0))
    parts = [Moments.of(a, (0, 2, 3), m) for a, m in zip(x.split([1, 4]), mask.split([1, 4]), strict=True)]
    assert_equal_moments(parts[0].merge(parts[1]), Moments.of(kept, 0))


def test_an_entirely_masked_set_merges_as_an_empty_one() -> None:
    x = data()
    nothing = Moments.of(x * float("nan"), (0, 2, 3), torch.zeros(5, 3, 6, dtype=torch.bool))
    assert (nothing.mean == 0).all()
    assert_equal_moments(nothing.merge(Moments.of(x, (0, 2, 3))), Moments.of(x, (0, 2, 3)))


@pytest.mark.parametrize("axis", [0, 1])
def test_merge_along_an_axis_is_merging_one_after_the_other(axis: int) -> None:
    x = data()
    parts = Moments.of(x, (2, 3))  # (5, 4)
    assert_equal_moments(parts.merge_along(axis), Moments.of(x, (axis, 2, 3)))
    mask = random_mask(tuple(x.shape), generator(3))
    mask[0] = False
    if axis == 0:
        assert_equal_moments(Moments.of(x, (2, 3), mask).merge_along(0), Moments.of(x, (0, 2, 3), mask))


def test_gradients_of_every_order_flow_through_of_merge_and_var() -> None:
    x = data((6, 2)).requires_grad_()

    def variance(x: Tensor) -> Tensor:
        a, b = x.split([2, 4])
        merged = Moments.of(a, 0).merge(Moments.of(b, 0))
        return torch.cat([merged.mean, merged.var(correction=1)])

    torch.autograd.gradcheck(variance, x)
    torch.autograd.gradgradcheck(variance, x)
    assert not Moments.of(x, 0).detach().mean.requires_grad


def test_normalize_lays_any_moments_on_an_input() -> None:
    x = data((5, 4, 3, 6))
    for dim in ((0, 2, 3), (2, 3), (1,), (2,)):
        expected = (x - x.mean(dim, keepdim=True)) / (x.var(dim, correction=0, keepdim=True) + 1e-5).sqrt()
        assert_equal64(nk.functional.normalize(x, Moments.of(x, dim)), expected)
    weight, bias = torch.rand(4).double(), torch.rand(4).double()
    y = nk.functional.normalize(x, Moments.of(x, (0, 2, 3)), weight, bias)
    assert_equal64(y, nk.functional.batch_norm(x, None, None, weight, bias, True))


def test_var_of_too_few_values_is_not_a_number_as_torchs() -> None:
    assert Moments.of(torch.ones(1, 2), 0).var(correction=1).isnan().all()
    assert_same(Moments.of(torch.ones(1, 2), 0).var(correction=0), torch.zeros(2).double())


def test_what_is_no_set_of_values_is_refused() -> None:
    x = data()
    with pytest.raises(TypeError, match=r"real floating-point tensor, got torch.int64: convert it with .float\(\)"):
        Moments.of(torch.ones(3, dtype=torch.int64), 0)
    with pytest.raises(IndexError, match=r"expected to be in range of \[-4, 3\], but got 4"):
        Moments.of(x, 4)
    with pytest.raises(ValueError, match="every axis may be reduced once"):
        Moments.of(x, (0, -4))
    with pytest.raises(TypeError, match="merge with Moments, got int"):
        Moments.of(x, 0).merge(3)  # type: ignore[arg-type]  # the point
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'correction'"):
        Moments.of(x, 0).var()  # type: ignore[call-arg]  # the point
    with pytest.raises(ValueError, match="do not fit an input of shape"):
        nk.functional.normalize(x, Moments.of(data((7, 2)), 0))
    with pytest.raises(TypeError, match=r"must be normkit\.Moments"):
        nk.functional.normalize(x, x)  # type: ignore[arg-type]  # the point
