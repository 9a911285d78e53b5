"""The experiments measure what they say: closed forms, invariances and repeatability."""

import copy

import pytest
import torch

import normkit as nk
from normkit.studies import data, linear_chain, nets, scale_invariance, train_test_gap, training
from normkit.studies.population import with_population_statistics


@pytest.mark.parametrize("depth", [2, 8, 32])
def test_the_plain_chain_steps_as_the_product_formula_says(depth: int) -> None:
    """With weights w_i and c = mean(x^2): actual = -c (prod(w_i + r g_i) - prod(w_i)), g_i = c prod_{j != i} w_j."""
    params = {"seed": 3, "rate": 0.1}
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(linear_chain.SAMPLES, 1, dtype=torch.float64, generator=generator)
    weights = 1.1 * (1 + 0.05 * torch.randn(depth, dtype=torch.float64, generator=generator))
    c = x.square().mean()
    gradients = c * weights.prod() / weights
    actual = c * ((weights + 0.1 * gradients).prod() - weights.prod())
    predicted = 0.1 * gradients.square().sum()
    expected = (abs(actual - predicted) / predicted).item()
    # float64 products of 32 factors: 1e-9 leaves room for the cancellation in actual - predicted
    assert linear_chain.step_error(depth, 1.1, "none", params) == pytest.approx(expected, rel=1e-9)


def test_a_chain_of_one_factor_is_predicted_exactly() -> None:
    assert linear_chain.step_error(1, 1.4, "none", {"seed": 0, "rate": 0.1}) < 1e-12  # linear: rounding only


def test_the_turn_of_a_step_is_its_angle() -> None:
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert scale_invariance._turn(w, torch.tensor([3.0, 3.0], dtype=torch.float64)) == pytest.approx(45.0)
    tiny = torch.tensor([1.0, 1e-9], dtype=torch.float64)
    assert scale_invariance._turn(w, tiny) == pytest.approx(1e-9 * 180 / torch.pi)


def test_no_shift_is_the_image_itself() -> None:
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(train_test_gap.shift(x, 0.0), x)
    assert not torch.allclose(train_test_gap.shift(x, 0.5), x)


def test_population_statistics_are_those_of_the_whole_set_and_leave_the_model_alone() -> None:
    images = data.load("digits")
    torch.manual_seed(0)
    model = nets.conv_net(images, "batch", width=4)
    before = copy.deepcopy(model.state_dict())
    exact = with_population_statistics(model, images.train_x)
    first = model[0](images.train_x).double()
    layer = exact[1]
    assert isinstance(layer, nk.BatchNorm2d)
    # float32 storage of the result: 2^-24 relative, and a few more of the convolution's own split into batches
    torch.testing.assert_close(layer.running_mean.double(), first.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(layer.running_var.double(), first.var((0, 2, 3), correction=1), rtol=1e-6, atol=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert exact.training == model.training


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_a_training_repeats_itself_bit_for_bit(norm: nets.Norm) -> None:
    images = data.load("digits")
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        model = nets.conv_net(images, norm, width=4)
        assert training.train(model, images, training.Plan(16, 60, 0.1), seed=5)
        results.append(training.test(model.eval(), images.test_x, images.test_y))
    assert results[0] == results[1]
    assert results[0][1] < 0.9  # better than one in ten: it learned


def test_a_training_that_diverges_says_so() -> None:
    images = data.load("digits")
    model = nets.conv_net(images, "none", width=4)
    assert not training.train(model, images, training.Plan(16, 60, 1e6), seed=0)


def test_answers_that_are_not_finite_are_wrong_answers() -> None:
    class NotANumber(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 10), torch.nan)

    _, error = training.test(NotANumber(), torch.zeros(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64))
    assert error == 1.0


def test_batches_hold_every_image_once_an_epoch() -> None:
    images = data.load("digits")
    seen = torch.cat([y for _, y in training._batches(images, training.Plan(479, 3, 0.1), torch.Generator())])
    assert torch.equal(seen.bincount(), images.train_y.bincount())  # 3 x 479 = 1437 images
