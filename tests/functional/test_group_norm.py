"""Group norm against the reference on every path, layout and regime; masks; residual and activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference
from tests.cases import DTYPES, EPS, GROUPS, LAYOUTS, VALUES, Shape, affine, gaussian, generator, random_mask
from tests.functional.norms import EXACT_BACKENDS, assert_layout_kept
from tests.functional.rows import Truth, assert_mask_selects, assert_right

each_backend = pytest.mark.parametrize("backend", EXACT_BACKENDS)
each_group = pytest.mark.parametrize(("shape", "groups"), GROUPS.values(), ids=GROUPS)


def beside(p: Tensor, x: Tensor) -> Tensor:
    return p.reshape(1, -1, *[1] * (x.dim() - 2))


def truth(groups: int) -> Any:
    def compute(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor | None) -> Truth:
        y = reference.group_norm(x, groups, weight, bias, EPS)[0]
        xhat, _, var = reference.group_norm(x, groups, None, None, EPS)
        gradients = reference.group_norm_backward(dy, x, groups, weight, EPS)
        rstd = (
            (var + EPS).rsqrt().repeat_interleave(x.shape[1] // groups, 1).reshape(*x.shape[:2], *[1] * (x.dim() - 2))
        )
        return (y, *gradients, xhat, rstd)

    return compute


def check(shape: Shape, groups: int, dtype: torch.dtype, layout: Any, values: Any, backend: str) -> None:
    g = generator(1)
    x, dy = layout(values(shape, g).to(dtype)), layout(gaussian(shape, g).to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    weight, bias = (p.to(wide) for p in affine(shape[1], g))

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with nk.backend(backend):
            y = nk.functional.group_norm(x, groups, w, b, EPS)
        assert_layout_kept(y, x)
        return y

    # the bound's means run over a group; those over the whole sample are of the same size on drawn values
    dims, others = tuple(range(1, x.dim())), (0, *range(2, x.dim()))
    if groups in (1, shape[1]):
        dims = dims if groups == 1 else tuple(range(2, x.dim()))
    assert_right(norm, x, dy, weight, bias, truth(groups), dims, others, lambda p: beside(p, x))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@each_group
def test_every_layout_is_right(shape: Shape, groups: int, layout: Any, dtype: torch.dtype, backend: str) -> None:
    check(shape, groups, dtype, layout, gaussian, backend)


@each_backend
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_regime_is_right(values: Any, backend: str) -> None:
    check((3, 6, 9, 7), 6, torch.float32, LAYOUTS["contiguous"], values, backend)


@pytest.mark.parametrize("dtype", [DTYPES["bf16"], DTYPES["f16"]], ids=["bf16", "f16"])
@each_group
def test_half_precision_is_rounded_once(shape: Shape, groups: int, dtype: torch.dtype) -> None:
    check(shape, groups, dtype, LAYOUTS["contiguous"], gaussian, "composed")


@each_group
def test_a_mask_leaves_the_statistics_of_the_real_values(shape: Shape, groups: int) -> None:
    if len(shape) < 3:
        pytest.skip("(N, C) has no positions to mask")
    g = generator(2)
    x, mask = gaussian(shape, g), random_mask(shape, g)
    mask.flatten(1)[:, :2] = True  # every sample keeps two positions
    y = nk.functional.group_norm(x, groups, eps=EPS, mask=mask)
    for i in range(shape[0]):
        real = x[i : i + 1][:, :, mask[i]]  # (1, C, kept)
        expected = reference.group_norm(real, groups, None, None, EPS)[0]
        torch.testing.assert_close(y[i : i + 1][:, :, mask[i]], expected)


@each_group
def test_what_lies_under_a_mask_reaches_nothing(shape: Shape, groups: int) -> None:
    if len(shape) < 3:
        pytest.skip("(N, C) has no positions to mask")
    g = generator(3)
    mask = random_mask(shape, g)

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return nk.functional.group_norm(x, groups, w, b, EPS, activation="sigmoid", mask=mask)

    assert_mask_selects(norm, gaussian(shape, g), mask.unsqueeze(1), affine(shape[1], g))


@each_backend
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu"])
def test_residual_and_activation_follow(activation: str, backend: str) -> None:
    g = generator(4)
    x, r = gaussian((3, 6, 4, 5), g), gaussian((3, 6, 4, 5), g)
    leaves = [t.requires_grad_() for t in (x, r, *affine(6, g))]

    def gradients(y: Tensor) -> list[Tensor]:
        return [y, *torch.autograd.grad(y.sin().sum(), leaves)]

    with nk.backend(backend):
        y = nk.functional.group_norm(x, 3, leaves[2], leaves[3], EPS, residual=r, activation=activation)
        found = gradients(y)
    plain = reference.group_norm(x, 3, leaves[2], leaves[3], EPS)[0] + r
    for a, b in zip(found, gradients(getattr(torch.nn.functional, activation)(plain)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("groups", [0, -1])
def test_a_number_of_groups_below_one_is_named(groups: int) -> None:
    text = f"num_groups must be a positive integer, got {groups}"
    with pytest.raises(ValueError, match=text):
        nk.GroupNorm(groups, 6)  # where torch divides by zero
    with pytest.raises(ValueError, match=text):
        nk.functional.group_norm(torch.ones(2, 6, 3), groups, eps=EPS)
