"""The experiments measure what they say: closed forms, invariances, equal draws and repeatability."""

import copy

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.studies import (
    Run,
    covariate_shift,
    data,
    nets,
    regularization,
    scale_invariance,
    step_sign,
    train_test_gap,
    training,
    tuned,
)
from normkit.studies import vanishing_gradient as vanishing
from normkit.studies.corruptions import CORRUPTIONS, corrupted
from normkit.studies.population import with_population_statistics, without_initial_value


@pytest.mark.parametrize("depth", [2, 5, 16])
def test_a_product_steps_as_autograd_says(depth: int) -> None:
    """J = mean(x y), y = w_m ... w_1 x, by autograd and SGD: the change, and the second-order term by the Hessian."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, dtype=torch.float64, generator=generator)
    factors = 1.1 * (1 + 0.05 * torch.randn(depth, dtype=torch.float64, generator=generator))

    def objective(w: torch.Tensor) -> torch.Tensor:
        return (x * w.prod() * x).mean()

    gradient = torch.autograd.functional.jacobian(objective, factors)
    hessian = torch.autograd.functional.hessian(objective, factors)
    change = objective(factors - 0.1 * gradient) - objective(factors)
    second = 0.1 / 2 * (gradient @ hessian @ gradient) / gradient.square().sum()
    c = float(x.square().mean())
    assert step_sign.change(factors, c, 0.1) == pytest.approx(float(change), rel=1e-9)
    assert step_sign.second_order(factors, c, 0.1) == pytest.approx(float(second), rel=1e-9)


def test_a_short_product_of_small_weights_falls_and_a_deep_one_of_large_rises() -> None:
    ones = torch.ones(16, dtype=torch.float64)
    assert step_sign.change(0.8 * ones, 1.0, 0.1) < 0
    assert step_sign.change(1.4 * ones, 1.0, 0.1) > 0  # an even number of factors that all turned negative and grew
    assert step_sign.change(1.4 * ones[:15], 1.0, 0.1) < 0


def test_batch_norm_erases_the_lower_factors_of_a_linear_chain_and_not_the_layers_of_a_net() -> None:
    result = step_sign.run({"seed": 1, "draws": 1})
    assert result["erased"] < 1e-20
    assert result["alive"] > 0.1


@pytest.mark.parametrize("pair", [("none", "batch"), ("batch", "group"), ("none", "layer")])
def test_arms_start_from_equal_weights(pair: tuple[nets.Norm, nets.Norm]) -> None:
    images = data.load("digits", 0)
    for one, other in (
        [nets.conv_net(images, norm, seed=7) for norm in pair],
        [nets.deep_mlp(images, norm, "relu", 4, seed=7) for norm in pair],
    ):
        weights = [[m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)] for net in (one, other)]
        assert len(weights[0]) == len(weights[1]) >= 4
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_starts_are_multiples_of_the_same_draws() -> None:
    images = data.load("digits", 0)
    unit, other = (nets.deep_mlp(images, "none", "tanh", 3, 5, start=start)[2].weight for start in ("unit", "default"))
    assert torch.allclose(other, unit / (3 * 64) ** 0.5, rtol=1e-5)
    assert abs(float(unit.detach().std()) - 1) < 0.05
    assert not torch.equal(unit, nets.deep_mlp(images, "none", "tanh", 3, 6, start="unit")[2].weight)


def test_a_sigmoid_network_s_own_start_keeps_the_variance_of_its_layers() -> None:
    """Gain 4 and centred biases: inputs of the last sigmoid still spread; from Glorot's they do not."""
    images = data.load("mnist5k", 0)
    spread = {}
    for start in ("right", "glorot"):
        net = nets.deep_mlp(images, "none", "sigmoid", 10, 0, start=start)
        inputs: list[torch.Tensor] = []
        for layer in net:
            if isinstance(layer, nn.Sigmoid):
                layer.register_forward_pre_hook(lambda _, x, kept=inputs: kept.append(x[0]))
        with torch.no_grad():
            net(images.train_x[:200])
        spread[start] = float(inputs[-1].std(0).mean() / inputs[0].std(0).mean())
    assert spread["right"] > 0.05
    assert spread["glorot"] < 1e-4


def test_the_rate_is_chosen_on_images_that_do_not_judge() -> None:
    def run(rate: float, valid: float, accuracy: float, norm: str = "none") -> Run:
        return Run({"rate": rate, "norm": norm, "seed": 0}, {"valid": valid, "accuracy": accuracy}, 0.0)

    runs = [run(1.0, 0.7, 0.9), run(0.1, 0.8, 0.5), run(3.0, 0.8, 0.6), run(0.1, 0.9, 0.1, "batch")]
    assert tuned.tuned(runs, norm="none").params["rate"] == 0.1  # of equals the smallest
    assert tuned.accuracy(runs, norm="none") == 50.0


def test_the_initial_value_is_divided_out_of_a_running_average() -> None:
    """With batches of one mean and variance the average without its start is that mean and variance after any step."""
    layer = nn.Sequential(nk.BatchNorm1d(3))
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 2 + 5
    for step in range(1, 4):
        layer(x)
        found = without_initial_value(layer, step)[0]
        assert torch.allclose(found.running_mean, x.mean(0), rtol=1e-5)
        assert torch.allclose(found.running_var, x.var(0), rtol=1e-5)
        assert not torch.allclose(layer[0].running_mean, x.mean(0), rtol=0.1)


def test_a_frozen_norm_stays_under_its_running_statistics() -> None:
    net = nn.Sequential(regularization.Freezing(3))
    x = torch.randn(20, 3)
    net(x)
    net[0].is_frozen = True
    net.eval().train()
    before = net[0].running_mean.clone()
    assert torch.equal(net(x + 5), net.eval()(x + 5))
    assert torch.equal(net[0].running_mean, before)
    assert regularization.Freezing(3).train().training


def test_drift_is_the_way_of_the_medians_in_deviations() -> None:
    x = torch.randn(301, 4, generator=torch.Generator().manual_seed(0))
    assert covariate_shift.drift([x, x, x]) == 0.0
    assert covariate_shift.drift([x, x + 2 * x.std(0)]) == pytest.approx(2.0, rel=1e-4)
    assert covariate_shift.drift([5 * x, 5 * x + 10 * x.std(0)]) == pytest.approx(2.0, rel=1e-4)  # whatever the scale


def test_noise_is_for_training_alone_and_moves_the_units() -> None:
    noise, x = covariate_shift.Noise(3), torch.randn(1000, 3)
    assert torch.equal(noise.eval()(x), x)
    assert (noise.train()(x).mean(0) - x.mean(0)).abs().max() > 0.1
    assert not torch.equal(noise(x), noise(x))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_repeats_itself_and_grows(name: str) -> None:
    x = data.load("digits", 0).test_x[:20]
    assert corrupted(x, name, 0, 1) is x
    mild, strong = (corrupted(x, name, severity, 1) for severity in (1, 5))
    assert torch.equal(mild, corrupted(x, name, 1, 1))
    assert mild.shape == x.shape
    assert 0 < (mild - x).norm() < (strong - x).norm()


def test_looking_at_a_network_leaves_it_as_it_was() -> None:
    images = data.load("digits", 0)
    model = nets.deep_mlp(images, "batch", "sigmoid", 3, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gradients, saturated = vanishing._looked(model, "sigmoid", images.train_x[:50], images.train_y[:50])
    assert len(gradients) == len(saturated) == 3
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("activation", "edge"), [("sigmoid", 3.64), ("tanh", 1.82), ("relu", 0.0)])
def test_saturation_begins_where_the_slope_falls_to_a_tenth(activation: str, edge: float) -> None:
    act = nets.ACTIVATIONS[activation]()
    inside, outside = (
        act(torch.tensor([edge + 0.05 if activation == "relu" else edge - 0.05])),
        act(torch.tensor([-0.05 if activation == "relu" else edge + 0.05])),
    )
    limit = vanishing.SATURATED[activation]
    assert vanishing._slope(inside, activation) >= limit > vanishing._slope(outside, activation)


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
    model = nets.conv_net(images, "batch", 0, width=4)
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
        model = nets.conv_net(images, norm, 5, width=8)
        assert training.train(model, images, training.Plan(16, 120, 0.1), seed=5)
        results.append(training.test(model.eval(), images.test_x, images.test_y))
    assert results[0] == results[1]
    assert results[0][1] < 0.9  # better than one in ten: it learned


@pytest.mark.parametrize(("norm", "rate"), [("none", 1e6), ("batch", 1e30)])
def test_a_training_that_diverges_says_so_and_warns_of_nothing(norm: nets.Norm, rate: float) -> None:
    images = data.load("digits")
    model = nets.conv_net(images, norm, 0, width=4)
    assert not training.train(model, images, training.Plan(16, 60, rate), seed=0)


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
