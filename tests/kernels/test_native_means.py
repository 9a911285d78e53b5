"""What the values of a channel want of each other in a derivative: within the contract wherever x lies."""

from __future__ import annotations

import pytest
import torch

import normkit as nk
from normkit import reference
from normkit.kernels import native
from tests.cases import gaussian, generator
from tests.kernels.native_isa import needs_native

pytestmark = needs_native
SHAPE = (4, 5, 7)


@pytest.mark.parametrize("std", [1e30, 1e12, 1.0, 1e-14], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_means_are_added_in_the_range_of_the_gradient(dtype: torch.dtype, std: float) -> None:
    g = generator(1)
    x, dx = (gaussian(SHAPE, g) * std).to(dtype), (gaussian(SHAPE, g) / std).to(dtype)
    weight, bias = gaussian((5,), g), gaussian((5,), g)
    mean, var = (std * 0.1 * gaussian((5,), g)), std**2 * (1 + torch.rand(5, generator=g, dtype=torch.float64))
    found = native.add_means(dx, x, weight, bias, mean, var, 0.0)
    lay = lambda t: t.view(1, 5, 1)  # noqa: E731
    rstd = lay(var.rsqrt())
    terms = (lay(weight) * (x.double() - lay(mean)) * rstd, lay(bias), dx.double() / rstd)
    expected, size = sum(terms), sum(t.abs() for t in terms)
    assert found.dtype == dtype
    error = (found.double() / rstd - expected).abs() / size
    assert float(error.max()) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("std", [1e30, 1.0], ids=str)
@pytest.mark.parametrize("groups", [2, 6])
def test_a_masked_group_far_from_one_has_its_gradient(groups: int, std: float) -> None:
    g = generator(2)
    x, dy = (gaussian((3, 6, 8), g) * std).float(), gaussian((3, 6, 8), g).float()
    mask = torch.rand(3, 8, generator=g) < 0.8
    leaf, leaf64 = x.requires_grad_(), x.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(nk.functional.group_norm(leaf, groups, eps=1e-30, mask=mask), leaf, dy)
    y64 = reference.group_norm(leaf64, groups, None, None, 1e-30, mask.unsqueeze(1))[0]
    (expected,) = torch.autograd.grad(y64, leaf64, dy.double())
    torch.testing.assert_close(found.double() * std, expected * std, rtol=1e-5, atol=1e-5)
