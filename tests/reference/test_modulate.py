"""The references of modulation and of domain batch norm: their hand-derived backwards against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit import reference
from tests.cases import gaussian, generator
from tests.tolerances import assert_equal64

EPS = 1e-3
SHAPE = (4, 3, 5, 2)


def gradients_agree(y: Tensor, leaves: list[Tensor], dy: Tensor, found: tuple[Tensor, ...]) -> None:
    for i, (a, e) in enumerate(zip(found, torch.autograd.grad(y, leaves, dy), strict=True)):
        assert_equal64(a, e, f"gradient {i}")


@pytest.mark.parametrize("sizes", [(4, 1, 1, 1), (4, 3, 1, 1), (4, 1, 5, 2), SHAPE, (1, 1, 1, 1)])
def test_modulation(sizes: tuple[int, ...]) -> None:
    g = generator(1)
    y, scale, shift = (gaussian(s, g).requires_grad_() for s in (SHAPE, sizes, sizes))
    z, dz = reference.modulate(y, scale, shift), gaussian(SHAPE, g)
    with torch.no_grad():
        found = reference.modulate_backward(dz, y, scale, shift)
    gradients_agree(z, [y, scale, shift], dz, found)


def test_a_modulation_of_another_rank_is_told() -> None:
    with pytest.raises(ValueError, match="expected a tensor of 4 axes"):
        reference.modulate_backward(torch.ones(SHAPE), torch.ones(SHAPE), torch.ones(5, 1), torch.ones(4, 3, 1, 1))


@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
def test_domains(shared: bool) -> None:
    g = generator(2)
    domain, sizes = torch.tensor([2, 0, 0, 2]), (3,) if shared else (3, 3)
    x, weight, bias = (gaussian(s, g).requires_grad_() for s in (SHAPE, sizes, sizes))
    y, mean, var = reference.domain_batch_norm(x, domain, 3, weight, bias, EPS)
    dy = gaussian(SHAPE, g)
    with torch.no_grad():
        found = reference.domain_batch_norm_backward(dy, x, domain, 3, weight, EPS)
    gradients_agree(y, [x, weight, bias], dy, found)
    for number in (0, 2):
        values = x.detach()[number == domain].movedim(1, 0).flatten(1)
        assert_equal64(mean[number], values.mean(1))
        assert_equal64(var[number], values.var(1, correction=0))
    assert not mean[1].any()
    assert not var[1].any()
