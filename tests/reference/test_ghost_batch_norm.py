"""Ghost batch norm: how a batch is cut, and that each slice is batch norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normkit import reference
from tests.cases import affine, gaussian, generator, random_mask
from tests.tolerances import assert_equal64

EPS = 1e-5
SLICES: dict[str, tuple[int, int, list[int]]] = {
    "even": (64, 32, [32, 32]),
    "one_over": (33, 32, [17, 16]),
    "smaller_than_virtual": (5, 32, [5]),
    "never_a_slice_of_one": (3, 2, [3]),
    "longer_first": (11, 4, [4, 4, 3]),
    "virtual_batch_of_one": (4, 1, [2, 2]),
    "one_sample": (1, 4, [1]),
}


@pytest.mark.parametrize(("n", "virtual", "expected"), SLICES.values(), ids=SLICES)
def test_slices(n: int, virtual: int, expected: list[int]) -> None:
    assert reference.slice_sizes(n, virtual) == expected


def test_slices_are_those_of_array_split_and_hold_at_least_two() -> None:
    for n in range(2, 70):
        for virtual in range(1, 40):
            sizes = reference.slice_sizes(n, virtual)
            assert sizes == [len(part) for part in np.array_split(np.arange(n), len(sizes))]
            assert min(sizes) >= 2
            assert max(sizes) <= max(virtual, 3)  # 3 = the odd batch that cannot be cut into pairs


@pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])
def test_each_slice_is_batch_norm_and_the_statistics_are_the_whole_batch(with_mask: bool) -> None:
    g = generator(3)
    x, dy, (weight, bias) = gaussian((7, 3, 4), g), gaussian((7, 3, 4), g), affine(3, g)
    mask = random_mask(x.shape, g) if with_mask else None
    y, mean, var = reference.ghost_batch_norm(x, weight, bias, EPS, 3, mask)
    dx, dweight, _ = reference.ghost_batch_norm_backward(dy, x, weight, EPS, 3, mask)
    expected_dweight = torch.zeros_like(weight)
    for part in (slice(0, 3), slice(3, 5), slice(5, 7)):
        part_mask = None if mask is None else mask[part]
        assert_equal64(y[part], reference.batch_norm(x[part], weight, bias, EPS, part_mask)[0], "y")
        gradients = reference.batch_norm_backward(dy[part], x[part], weight, EPS, part_mask)
        assert_equal64(dx[part], gradients[0], "dx")
        expected_dweight += gradients[1]
    assert_equal64(dweight, expected_dweight, "dweight")
    _, whole_mean, whole_var = reference.batch_norm(x, weight, bias, EPS, mask)
    assert_equal64(mean, whole_mean, "mean")
    assert_equal64(var, whole_var, "var")


def test_a_virtual_batch_as_large_as_the_batch_is_batch_norm() -> None:
    x = gaussian((6, 3, 4), generator(3))
    for a, b in zip(
        reference.ghost_batch_norm(x, None, None, EPS, 6), reference.batch_norm(x, None, None, EPS), strict=True
    ):
        assert_equal64(a, b)


def test_a_virtual_batch_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"virtual_batch_size >= 1 \(got 0\)"):
        reference.slice_sizes(4, 0)
