"""Layer norm, alone, after an addition and over channels; its mask covers positions, never normalized axes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference
from tests.cases import EPS, LAYOUTS, VALUES, affine, gaussian, generator
from tests.functional.norms import EXACT_BACKENDS, assert_layout_kept
from tests.functional.rows import Truth, assert_mask_selects, assert_right

f = nk.functional
# id -> (shape, normalized shape)
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one_axis": ((4, 7, 33), (33,)),
    "two_axes": ((5, 3, 7), (3, 7)),
    "all_axes": ((3, 7), (3, 7)),
    "wide": ((3, 1027), (1027,)),
    "vector": ((64,), (64,)),
}
each_backend = pytest.mark.parametrize("backend", EXACT_BACKENDS)
each_case = pytest.mark.parametrize(("shape", "normalized"), CASES.values(), ids=CASES)


def truth(normalized: tuple[int, ...]) -> Any:
    def compute(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor | None) -> Truth:
        xhat, _, var = reference.layer_norm(x, normalized, None, None, EPS)
        y = reference.layer_norm(x, normalized, weight, bias, EPS)[0]
        rstd = (var + EPS).rsqrt().reshape(*var.shape, *[1] * len(normalized))
        return (y, *reference.layer_norm_backward(dy, x, normalized, weight, EPS), xhat, rstd)

    return compute


def check(shape: tuple[int, ...], normalized: tuple[int, ...], dtype: torch.dtype, values: Any, backend: str) -> None:
    g = generator(1)
    x, dy = values(shape, g).to(dtype), gaussian(shape, g).to(dtype)
    weight, bias = (gaussian(normalized, g).to(torch.promote_types(dtype, torch.float32)) for _ in range(2))

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with nk.backend(backend):
            return f.layer_norm(x, normalized, w, b, EPS)

    dims = tuple(range(x.dim() - len(normalized), x.dim()))
    leading = tuple(range(x.dim() - len(normalized)))
    if leading:
        assert_right(norm, x, dy, weight, bias, truth(normalized), dims, leading, lambda p: p)
    else:  # one position: a gradient of a parameter is one term, no sum
        x, dy = x.unsqueeze(0), dy.unsqueeze(0)
        dims = tuple(d + 1 for d in dims)
        assert_right(norm, x, dy, weight, bias, truth(normalized), dims, (0,), lambda p: p)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@each_case
def test_every_shape_is_right(shape: Any, normalized: Any, dtype: torch.dtype, backend: str) -> None:
    check(shape, normalized, dtype, gaussian, backend)


@each_backend
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_regime_is_right(values: Any, backend: str) -> None:
    check((6, 50), (50,), torch.float32, values, backend)


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_over_channels_every_layout_is_right_and_kept(layout: Any, backend: str) -> None:
    g = generator(2)
    x, dy = (layout(gaussian((3, 6, 4, 5), g, mean=100.0).float()) for _ in range(2))
    weight, bias = (p.float() for p in affine(6, g))
    layer = nk.LayerNorm2d(6, eps=EPS)

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        with nk.backend(backend):
            y = torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,))
        assert_layout_kept(y, x)
        return y

    def compute(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor | None) -> Truth:
        xhat, _, var = reference.layer_norm_2d(x, None, None, EPS)
        gradients = reference.layer_norm_2d_backward(dy, x, weight, EPS)
        return (reference.layer_norm_2d(x, weight, bias, EPS)[0], *gradients, xhat, (var + EPS).rsqrt().unsqueeze(1))

    # functional_call hides the leaves from nothing: the parameters are plain tensors here
    assert_right(norm, x, dy, weight, bias, compute, (1,), (0, 2, 3), lambda p: p.reshape(1, -1, 1, 1))


@pytest.mark.parametrize("shape", [(4, 7), (4, 7, 1), (1, 7), (4, 1, 1)], ids=str)
def test_a_mask_zeroes_positions_and_lets_nothing_out(shape: tuple[int, ...]) -> None:
    g = generator(3)
    mask = torch.rand(shape, generator=g) < 0.6
    beside = mask if mask.dim() == 3 else mask.unsqueeze(-1)
    x, parameters = gaussian((4, 7, 5), g), [gaussian((5,), g) for _ in range(2)]

    def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return f.layer_norm(x, (5,), w, b, EPS, activation="sigmoid", mask=mask)

    assert_mask_selects(norm, x, beside, parameters)
    expected = torch.where(beside, f.layer_norm(x, (5,), *parameters, EPS).sigmoid(), 0)
    torch.testing.assert_close(norm(x, *parameters), expected)


def test_a_mask_of_pixels_zeroes_them_over_channels() -> None:
    g = generator(4)
    x, mask = gaussian((2, 6, 4, 5), g).float(), torch.rand(2, 4, 5, generator=g) < 0.5
    layer = nk.LayerNorm2d(6, EPS)
    torch.testing.assert_close(layer(x, mask=mask), torch.where(mask[:, None], layer(x), 0))


@pytest.mark.parametrize(
    "call", [lambda x, m: f.layer_norm(x, (7, 5), mask=m), lambda x, m: f.rms_norm(x, (7, 5), mask=m)]
)
@pytest.mark.parametrize("shape", [(4, 7), (4, 7, 5), (4, 7, 1), (3,)], ids=str)
def test_a_mask_over_normalized_axes_is_refused(call: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="A position is real or padding as a whole"):
        call(torch.ones(4, 7, 5), torch.ones(shape, dtype=torch.bool))


def test_a_mask_that_is_not_bool_is_refused() -> None:
    with pytest.raises(TypeError, match=r"use mask\.bool\(\)"):
        f.layer_norm(torch.ones(4, 5), (5,), mask=torch.ones(4))


def test_the_addition_returns_the_norm_of_the_sum_and_the_sum() -> None:
    g = generator(5)
    x, r, weight, bias = gaussian((4, 5), g), gaussian((4, 5), g), gaussian((5,), g), gaussian((5,), g)
    options: dict[str, Any] = {"eps": EPS, "activation": "silu", "mask": torch.arange(4) < 3}
    y, total = f.add_layer_norm(x, r, (5,), weight, bias, **options)
    assert torch.equal(total, x + r)
    assert torch.equal(y, f.layer_norm(x + r, (5,), weight, bias, **options))
    with pytest.raises(ValueError, match="residual must have the input's shape"):
        f.add_layer_norm(x, r[:1], (5,))


@pytest.mark.parametrize("x", [torch.ones(2, 3, 4), torch.ones(2, 3, 4, 5, 6)], ids=["3d", "5d"])
def test_layer_norm_2d_takes_images_alone(x: Tensor) -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        nk.LayerNorm2d(3)(x)


def test_layer_norm_2d_names_the_channels_that_came() -> None:
    with pytest.raises(RuntimeError, match="expected 6 channels at axis 1"):
        nk.LayerNorm2d(6)(torch.ones(2, 3, 4, 4))
