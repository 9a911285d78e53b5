"""The chain of scalar weights: its gradient against autograd, its terms against the step itself and binomials."""

from __future__ import annotations

import math

import pytest
import torch

from normkit import reference
from tests.cases import gaussian, generator
from tests.tolerances import assert_equal64


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_the_gradient_is_that_of_autograd(zeros: int) -> None:
    w = gaussian((7,), generator(1))
    w[:zeros] = 0
    w.requires_grad_()
    (expected,) = torch.autograd.grad(reference.chain(w, 1.7), w)
    assert_equal64(reference.chain_gradient(w.detach(), 1.7), expected)


@pytest.mark.parametrize("depth", [1, 2, 5, 16])
def test_the_terms_sum_to_what_the_step_does(depth: int) -> None:
    w, rate, x = gaussian((depth,), generator(depth)), 0.03, -1.3
    g = reference.chain_gradient(w, x)
    terms = reference.chain_step_terms(w, rate, x)
    assert_equal64(terms[0], -rate * g.square().sum())
    assert_equal64(terms.sum(), reference.chain(w - rate * g, x) - reference.chain(w, x))


def test_equal_weights_give_binomial_terms() -> None:
    """The j-th of m is (-rate)^j (m over j) g^j w^(m - j), with g = w^(m - 1)."""
    m, w, rate = 6, 1.4, 0.03
    expected = [(-rate) ** j * math.comb(m, j) * (w ** (m - 1)) ** j * w ** (m - j) for j in range(1, m + 1)]
    terms = reference.chain_step_terms(torch.full((m,), w, dtype=torch.float64), rate)
    assert_equal64(terms, torch.tensor(expected, dtype=torch.float64))


def test_a_large_even_product_rises_where_it_should_fall() -> None:
    """eps w^(m - 2) > 2: each factor goes below -w, so an even product grows."""
    for w, wrong in ((1.3, False), (1.4, True)):
        terms = reference.chain_step_terms(torch.full((16,), w, dtype=torch.float64), 0.03)
        assert bool(terms[0] < 0)
        assert bool(terms.sum() > 0) == (0.03 * w**14 > 2) == wrong
