"""adapt mixes the test batch's statistics with the source's as a prior of N samples, and gives the model back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from normkit.statistics import Adaptation
from tests.cases import generator
from tests.statistics.nets import BATCH_NORMS, Lookalike, assert_unchanged, data, net, state
from tests.statistics.test_preserved import everything

# Norms without an activation of their own, so that a layer's output can be compared with a formula.
PLAIN = {name: make for name, make in BATCH_NORMS.items() if name not in ("normkit_relu", "foreign")}


def trained(norm=nn.BatchNorm2d) -> nn.Sequential:
    model = net(norm)
    nk.recalibrate(model, data((9, 8), mean=1.0))
    return model.eval()


def normalized(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    return (x.double() - mean.double().view(shape)) / (var.double().view(shape) + 1e-5).sqrt()


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double().mean((0, 2, 3)), x.double().var((0, 2, 3), correction=0)


@pytest.mark.parametrize("prior", [0, 1, 16, 1000.0])
@pytest.mark.parametrize("norm", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("n", [2, 7])
def test_the_mixture_is_that_of_the_paper(norm, prior, n):
    layer, (x,) = trained(norm)[0], data((n,), mean=4.0, std=3.0)
    mean, var = reference.adapt(layer.running_mean.double(), layer.running_var.double(), *batch_moments(x), n, prior)
    with nk.adapt(layer, prior=prior):
        y = layer(x)
    # statistics rounded to float32 and 4 operations; |x/std| < 12 here
    torch.testing.assert_close(y.double(), normalized(x, mean, var), rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("norm", BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_an_infinite_prior_is_plain_evaluation_to_the_bit(norm):
    model, (x,) = trained(norm), data((5,), mean=4.0)
    plain = model(x)
    with nk.adapt(model, prior=math.inf):
        assert torch.equal(model(x), plain)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nk.BatchNorm2d], ids=["torch", "normkit"])
def test_no_prior_is_the_forward_of_training(norm):
    model, (x,) = trained(norm), data((5,), mean=4.0)
    with nk.adapt(model, prior=0):
        adapted = model(x)
    model[0].train(), model[2].train()
    torch.testing.assert_close(adapted, model(x), rtol=1e-5, atol=1e-5)


def test_a_batch_of_n_counts_as_much_as_a_prior_of_n_whatever_its_size_in_pixels():
    layer = nn.BatchNorm2d(1).eval()  # source: mean 0
    for side in (2, 32):
        x = 10 + torch.randn(8, 1, side, side, generator=generator())
        with nk.adapt(layer, prior=8):
            shifted = layer(x) * (0.5 + 0.5 * x.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(shifted, x - x.mean() / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["torch", "normkit", "foreign", "lookalike"])
def test_the_model_comes_back_also_after_an_exception(norm):
    model = trained(BATCH_NORMS[norm]).train()
    before, values = everything(model), state(model)
    with nk.adapt(model):
        assert not model.training
        model(data((4,))[0])
    assert everything(model) == before
    assert_unchanged(model, values)
    with pytest.raises(TypeError, match="expected a Tensor"), nk.adapt(model):
        model(None)
    assert everything(model) == before
    assert_unchanged(model, values)


def test_an_exception_inside_a_forward_gives_the_layer_back():
    class Fails(Lookalike):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError

    model = nn.Sequential(Fails(3))
    before = everything(model)
    with pytest.raises(KeyError), nk.adapt(model):
        model(data()[0])
    assert everything(model) == before


def test_episodes_do_not_know_of_each_other():
    model, (a, b) = trained(), data((4, 6), mean=4.0)
    with nk.adapt(model, prior=4):
        first, _, again = model(a), model(b), model(a)
    assert torch.equal(first, again)


@pytest.mark.parametrize("norm", ["torch", "normkit"])
def test_a_running_adaptation_counts_all_samples_so_far(norm):
    layer, batches = trained(BATCH_NORMS[norm])[0], data((4, 6, 1), mean=4.0)
    with nk.adapt(layer, prior=3, running=True):
        for i, x in enumerate(batches):
            y = layer(x)
            seen = torch.cat(batches[: i + 1])
            mean, var = reference.adapt(
                layer.running_mean.double(), layer.running_var.double(), *batch_moments(seen), len(seen), 3
            )
            torch.testing.assert_close(y.double(), normalized(x, mean, var), rtol=4e-6, atol=4e-6)


def test_reset_forgets_the_samples_so_far():
    layer, (a, b) = trained()[0], data((4, 6), mean=4.0)
    with nk.adapt(layer, prior=3, running=True) as adaptation:
        fresh = layer(a)
        layer(b)
        assert not torch.equal(layer(a), fresh)
        adaptation.reset()
        assert torch.equal(layer(a), fresh)


def test_frozen_layers_stay_and_only_selects():
    model = nn.Sequential(nk.FrozenBatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    assert nk.adapt(model).names == ("1", "2")
    assert nk.adapt(model, only="1").names == ("1",)
    (x,) = data((4,), mean=4.0)
    plain = model[0](x)
    with nk.adapt(model):
        assert torch.equal(model[0](x), plain)
    with pytest.raises(ValueError, match="selects none"):
        nk.adapt(model, only="9")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_falls_back_to_the_source(bad):
    layer, (x,) = trained()[0], data((4,), mean=4.0)
    x[0, :, 0, 0] = bad
    plain = layer(x)
    for running in (False, True):
        with nk.adapt(layer, prior=2, running=running):
            torch.testing.assert_close(layer(x), plain, equal_nan=True)


def test_masked_values_do_not_count_and_hidden_samples_are_no_samples():
    layer = nk.BatchNorm1d(3).eval()
    x = torch.randn(5, 3, 4, generator=generator())
    lengths = torch.tensor([4, 2, 0, 1, 0])
    mask = nk.mask_from_lengths(lengths, 4)
    x[~mask.unsqueeze(1).expand_as(x)] = float("nan")
    real = torch.cat([x[i, :, :k].T for i, k in enumerate(lengths.tolist())]).double()
    mean, var = reference.adapt(torch.zeros(3), torch.ones(3), real.mean(0), real.var(0, correction=0), 3, 6)
    with nk.adapt(layer, prior=6):
        y = layer(x, mask=mask)
    expected = (x.double() - mean.view(1, 3, 1)) / (var.view(1, 3, 1) + 1e-5).sqrt()
    torch.testing.assert_close(y.double(), torch.where(mask.unsqueeze(1), expected, 0), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("norm", [nn.InstanceNorm1d, nk.InstanceNorm1d], ids=["torch", "normkit"])
def test_instance_norm_adapts_to_the_average_over_samples(norm):
    layer = norm(3, track_running_stats=True).eval()
    x = 2 * torch.randn(4, 3, 50, generator=generator()) + 1
    mean, var = x.double().mean(2).mean(0), x.double().var(2).mean(0)
    mean, var = reference.adapt(torch.zeros(3), torch.ones(3), mean, var, 4, 4)
    with nk.adapt(layer, prior=4):
        y = layer(x)
    expected = (x.double() - mean.view(1, 3, 1)) / (var.view(1, 3, 1) + 1e-5).sqrt()
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=2e-6)


def test_gradients_flow_with_the_statistics_as_constants():
    model, (x,) = trained(), data((4,), mean=4.0)
    with nk.adapt(model, prior=2):
        model(x).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.isfinite().all()


def test_a_checkpoints_recomputation_is_not_counted_twice():
    from torch.utils.checkpoint import checkpoint

    layer, (x,) = trained()[0], data((4,), mean=4.0)
    with nk.adapt(layer, prior=2, running=True):
        checkpoint(layer, x.requires_grad_(), use_reentrant=False).sum().backward()
        again = layer(x)
    with nk.adapt(layer, prior=2, running=True):
        layer(x)
        assert torch.equal(layer(x), again)


def test_it_can_be_called_like_the_model():
    model, (x,) = trained(), data((4,))
    with nk.adapt(model) as adapted:
        assert isinstance(adapted, Adaptation)
        assert torch.equal(adapted(x), model(x))


@pytest.mark.parametrize("prior", [-1, float("nan"), -math.inf])
def test_a_prior_below_zero_is_refused(prior):
    with pytest.raises(ValueError, match="prior must be a number of samples"):
        nk.adapt(net(), prior=prior)


def test_two_blocks_on_one_model_are_refused():
    model = net()
    with nk.adapt(model), pytest.raises(RuntimeError, match="leave that block first"), nk.adapt(model):
        pass
    with nk.adapt(model):  # the refusal left nothing behind
        pass


def test_one_value_without_a_prior_is_torchs_error():
    layer = nn.BatchNorm1d(3).eval()
    x = torch.randn(1, 3, generator=generator())
    with nk.adapt(layer, prior=0), pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        layer(x)
    with nk.adapt(layer, prior=1):
        assert layer(x).isfinite().all()
