"""Running averages, population statistics and test-time adaptation: values, unbiasedness, and torch's own buffers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from normkit import reference
from tests.cases import gaussian, generator
from tests.tolerances import assert_equal64, assert_within


def batches(steps: int) -> list[Tensor]:
    g = generator(2)
    return [gaussian((4, 3, 5), g, mean=float(t % 7), std=1.0 + t % 3) for t in range(steps)]


@pytest.mark.parametrize("momentum", [0.1, 0.9, 0.0, 1.0, None], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 2, 100], ids=str)
def test_update_moves_what_torch_moves(steps: int, momentum: float | None) -> None:
    layer = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    state = (torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), 0)
    for x in batches(steps):
        layer(x)
        _, mean, var = reference.batch_norm(x, None, None, layer.eps)
        state = reference.update(*state, mean, var, 20, momentum)
    assert_equal64(state[0], layer.running_mean, "running_mean")
    assert_equal64(state[1], layer.running_var, "running_var")
    assert state[2] == int(layer.num_batches_tracked) == steps


def test_exponential_weighs_the_new_value_and_equals_its_closed_form() -> None:
    start, *values = (gaussian((3,), generator(seed)) for seed in range(21))
    running = start
    for value in values:
        running = reference.exponential(running, value, 0.1)
    assert_equal64(running, reference.exponential_closed_form(start, values, 0.1))
    assert_equal64(reference.exponential(start, values[0], 1.0), values[0])


def test_cumulative_is_the_mean() -> None:
    values = [gaussian((3,), generator(seed)) for seed in range(10)]
    running = torch.full((3,), 77.0, dtype=torch.float64)  # the start is forgotten at the first value
    for count, value in enumerate(values, start=1):
        running = reference.cumulative(running, value, count)
    assert_equal64(running, torch.stack(values).mean(0))


def test_unbiased_needs_two_values() -> None:
    with pytest.raises(ValueError, match=r"more than 1 value per channel .* \(got 1\)"):
        reference.unbiased(torch.zeros(3), 1)


def test_population_is_the_whole_set_as_one_batch_however_it_is_cut() -> None:
    x = gaussian((30, 3, 4), generator(4), mean=50.0)
    rows = x.movedim(1, -1).reshape(-1, 3)
    for sizes in ([30], [10, 10, 10], [1, 13, 15, 1]):
        mean, var = reference.population(x.split(sizes))
        assert_equal64(mean, rows.mean(0))
        assert_equal64(var, rows.var(0, correction=1))


def test_batch_average_of_equal_batches_is_the_formula_of_the_paper() -> None:
    parts = gaussian((30, 3, 4), generator(4), mean=50.0).split(5)
    moments = [reference.batch_norm(part, None, None, 1e-5)[1:] for part in parts]
    mean, var = reference.batch_average(parts)
    m = 5 * 4
    assert_equal64(mean, torch.stack([mean for mean, _ in moments]).mean(0))
    assert_equal64(var, m / (m - 1) * torch.stack([var for _, var in moments]).mean(0))


def test_both_estimators_are_unbiased_on_iid_data_with_unequal_batches() -> None:
    # 2000 data sets of 12 values of variance 4: the mean of the estimates has standard error 4*sqrt(2/dof)/sqrt(2000),
    # dof >= 8 here, so 0.045; five of those are 0.22, and a biased variance (8/12 or 11/12 of 4) is 0.33 off at least.
    x = gaussian((12, 2000), generator(10), mean=3.0, std=2.0)
    for estimate in (reference.population, reference.batch_average):
        mean, var = estimate(x.split([5, 4, 2, 1]))
        assert abs(mean.mean().item() - 3.0) < 0.07, estimate.__name__  # standard error 2/sqrt(24000) = 0.013
        assert abs(var.mean().item() - 4.0) < 0.22, estimate.__name__


def test_clustered_batches_hide_their_spread_from_the_batch_average() -> None:
    # Batches of 2 around centres of standard deviation 3, noise of variance 1: within 1, in all 1 + 9 = 10.
    g = generator(11)
    centres = gaussian((4000, 1, 1), g, std=3.0)
    clustered = list(centres + gaussian((4000, 2, 1), g))
    _, within = reference.batch_average(clustered)
    _, whole = reference.population(clustered)
    # standard errors: sqrt(2/4000) = 0.022 of 1, and (1 + 2*9)*sqrt(2/8000) = 0.3 at most for 10; five of each.
    assert_within(within, torch.ones(1, dtype=torch.float64), 0.11, "variance within batches")
    assert_within(whole, torch.full((1,), 10.0, dtype=torch.float64), 1.5, "variance of the population")


def test_a_last_batch_of_one_is_counted_in_the_mean_and_not_in_the_variance() -> None:
    pair, single = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[7.0]]).double()
    mean, var = reference.batch_average([pair, single])
    assert_equal64(mean, torch.tensor([3.0]).double())
    assert_equal64(var, torch.tensor([2.0]).double())
    with pytest.raises(ValueError, match="every batch has at most 1"):
        reference.batch_average([single, single])


SOURCE = (torch.tensor([1.0, -2.0]).double(), torch.tensor([4.0, 0.5]).double())
TARGET = (torch.tensor([3.0, -2.0]).double(), torch.tensor([1.0, 1.5]).double())


@pytest.mark.parametrize("mix", [reference.adapt, reference.adapt_merged], ids=["paper", "merged"])
@pytest.mark.parametrize(("prior", "expected"), [(0.0, TARGET), (math.inf, SOURCE)], ids=["batch", "source"])
def test_the_ends_of_the_prior_are_the_test_batch_and_the_source(
    mix: Callable[..., Any], prior: float, expected: tuple[Tensor, Tensor]
) -> None:
    for a, b in zip(mix(*SOURCE, *TARGET, 8, prior), expected, strict=True):
        assert_equal64(a, b)


def test_adapt_weighs_by_samples() -> None:
    mean, var = reference.adapt(*SOURCE, *TARGET, n=8, prior=24)
    assert_equal64(mean, torch.tensor([1.5, -2.0]).double())
    assert_equal64(var, torch.tensor([3.25, 0.75]).double())


def test_adapt_merged_is_the_variance_of_the_joined_samples() -> None:
    source, target = gaussian((24, 2), generator(1)), gaussian((8, 2), generator(2), mean=3.0)
    (source_mean, source_var), (mean, var) = (reference.batch_norm(x, None, None, 1e-5)[1:] for x in (source, target))
    joined = reference.batch_norm(torch.cat([source, target]), None, None, 1e-5)[1:]
    merged = reference.adapt_merged(source_mean, source_var, mean, var, 8, 24)
    papers = reference.adapt(source_mean, source_var, mean, var, 8, 24)
    for a, b in zip(merged, joined, strict=True):
        assert_equal64(a, b)
    assert (papers[1] < joined[1]).all()  # the paper leaves out the distance between the means


@pytest.mark.parametrize("prior", [-1.0, math.nan], ids=str)
def test_a_prior_that_is_no_count_is_refused(prior: float) -> None:
    with pytest.raises(ValueError, match="expected prior >= 0 samples"):
        reference.source_share(prior, 8)
