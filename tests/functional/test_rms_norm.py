"""RMS norm against the reference, its default eps, and the addition before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference
from tests.cases import EPS, VALUES, gaussian, generator
from tests.functional.norms import EXACT_BACKENDS
from tests.functional.rows import Truth, assert_mask_selects, assert_right

f = nk.functional
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one_axis": ((4, 7, 33), (33,)),
    "two_axes": ((5, 3, 7), (3, 7)),
    "wide": ((3, 1027), (1027,)),
}
each_backend = pytest.mark.parametrize("backend", EXACT_BACKENDS)


def check(shape: Any, normalized: Any, dtype: torch.dtype, values: Any, backend: str) -> None:
    g = generator(1)
    x, dy = values(shape, g).to(dtype), gaussian(shape, g).to(dtype)
    weight = gaussian(normalized, g).to(torch.promote_types(dtype, torch.float32))

    def norm(x: Tensor, w: Tensor) -> Tensor:
        with nk.backend(backend):
            return f.rms_norm(x, normalized, w, EPS)

    def compute(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor | None) -> Truth:
        xhat, mean_square = reference.rms_norm(x, normalized, None, EPS)
        dx, dweight = reference.rms_norm_backward(dy, x, normalized, weight, EPS)
        rstd = (mean_square + EPS).rsqrt().reshape(*mean_square.shape, *[1] * len(normalized))
        return reference.rms_norm(x, normalized, weight, EPS)[0], dx, dweight, dweight, xhat, rstd

    split = x.dim() - len(normalized)
    assert_right(norm, x, dy, weight, None, compute, range(split, x.dim()), range(split), lambda p: p)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("shape", "normalized"), CASES.values(), ids=CASES)
def test_every_shape_is_right(shape: Any, normalized: Any, dtype: torch.dtype, backend: str) -> None:
    check(shape, normalized, dtype, gaussian, backend)


@each_backend
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_every_regime_is_right(values: Any, backend: str) -> None:
    check((6, 50), (50,), torch.float32, values, backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_default_eps_is_that_of_float32_or_float64(dtype: torch.dtype) -> None:
    x = torch.full((2, 8), 2e-4 if dtype != torch.float64 else 1e-8, dtype=dtype)  # its square is near eps
    eps = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + eps).sqrt()
    tolerance = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(f.rms_norm(x, (8,)).double(), expected, rtol=tolerance, atol=0)


def test_the_output_has_the_inputs_dtype_whatever_the_weights() -> None:
    x = torch.ones(2, 8, dtype=torch.bfloat16)
    for dtype in (torch.float64, torch.float32, torch.float16):
        with nk.backend("composed"):
            assert f.rms_norm(x, (8,), torch.ones(8, dtype=dtype)).dtype == torch.bfloat16


def test_a_mask_zeroes_positions_and_lets_nothing_out() -> None:
    g = generator(3)
    x, weight, mask = gaussian((4, 7, 5), g), gaussian((5,), g), torch.rand(4, 7, generator=g) < 0.6
    assert_mask_selects(lambda x, w: f.rms_norm(x, (5,), w, EPS, mask=mask), x, mask.unsqueeze(-1), [weight])


def test_the_addition_returns_the_norm_of_the_sum_and_the_sum() -> None:
    g = generator(5)
    x, r, weight = gaussian((4, 5), g), gaussian((4, 5), g), gaussian((5,), g)
    options: dict[str, Any] = {"eps": EPS, "activation": "silu", "mask": torch.arange(4) < 3}
    y, total = f.add_rms_norm(x, r, (5,), weight, **options)
    assert torch.equal(total, x + r)
    assert torch.equal(y, f.rms_norm(x + r, (5,), weight, **options))
