"""Layer and RMS norm of single values and of channels-last images: gradients and memory formats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import normkit as nk
import normkit.functional as F
from tests.kernels.native_isa import isa, needs_native  # noqa: F401  # isa is a fixture
from tests.tolerances import assert_same

pytestmark = needs_native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (4, 1), (64, 1), (300, 1), (2, 3, 1, 1)], ids=str)
def test_one_value_is_its_own_mean_and_has_no_gradient(shape: tuple[int, ...], dtype: torch.dtype, isa: str) -> None:  # noqa: F811
    x, dy = (torch.randn(shape).to(dtype) for _ in range(2))
    weight, bias = ((torch.randn(1) * 3).to(dtype).requires_grad_() for _ in range(2))
    x.requires_grad_()
    y = F.layer_norm(x, (1,), weight, bias)
    dx, dweight, dbias = torch.autograd.grad(y, [x, weight, bias], dy)
    assert_same(dx, torch.zeros_like(dx))
    assert_same(dweight, torch.zeros_like(dweight))
    torch.testing.assert_close(dbias, dy.double().sum().reshape(1).to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_stays_visible(value: float) -> None:
    for of in ("x", "dy"):
        x, dy = torch.ones(4, 1), torch.ones(4, 1)
        {"x": x, "dy": dy}[of][2] = value
        (dx,) = torch.autograd.grad(F.layer_norm(x.requires_grad_(), (1,)), x, dy)
        torch.testing.assert_close(
            dx, torch.tensor([[0.0], [0.0], [float("nan")], [0.0]]), rtol=0, atol=0, equal_nan=True
        )


def channels_last(tensor: Tensor) -> Tensor:
    """(N, C, *) with C innermost in memory."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("graph", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("shape", [(2, 4, 6, 8), (2, 3, 4, 5, 6), (2, 4, 6), (4, 8, 128, 128)], ids=str)
def test_rms_norm_keeps_the_memory_format(shape: tuple[int, ...], axes: int, graph: bool) -> None:
    norm, row_major = nk.RMSNorm(shape[-axes:]), torch.randn(shape)
    torch.nn.init.normal_(norm.weight)
    x, dy = channels_last(row_major), torch.randn(shape)
    if not graph:
        with torch.no_grad():
            y = norm(x)
            assert y.stride() == x.stride()
            assert_same(y, norm(row_major))
        return
    expected, y = norm(row_major.requires_grad_()), norm(x.requires_grad_())
    assert y.stride() == x.stride()
    assert_same(y, expected)
    found = torch.autograd.grad(y, [x, norm.weight], dy)
    assert found[0].stride() == x.stride()
    for a, b in zip(found, torch.autograd.grad(expected, [row_major, norm.weight], dy), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("make", [lambda t: t[:, ::2], lambda t: t[:, :1].expand_as(t), lambda t: t[..., 3:]])
def test_rms_norm_of_memory_with_gaps_or_repeats_is_as_torchs_empty_like(make: object) -> None:
    x = make(torch.randn(64, 32, 320))  # type: ignore[operator]  # a function of tensors
    y = nk.RMSNorm(x.shape[-1])(x)
    assert y.stride() == torch.empty_like(x).stride()
    assert_same(y, nk.RMSNorm(x.shape[-1])(x.contiguous()))


def test_layer_norm_is_row_major_as_torchs() -> None:
    x = channels_last(torch.randn(2, 4, 6, 8)).requires_grad_()
    y = nk.LayerNorm(8)(x)
    assert y.is_contiguous()
    assert torch.nn.LayerNorm(8)(x).is_contiguous()
