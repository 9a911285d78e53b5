"""torch.func over layers in training mode: functional_call, grad, vmap, jacrev, and the statistics they move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap

import normkit as nk
from tests.cases import EPS, MOMENTUM

LAYERS: dict[str, Any] = {
    "batch": lambda: nk.BatchNorm1d(6, EPS, MOMENTUM),
    "batch_cumulative": lambda: nk.BatchNorm1d(6, EPS, None),
    "instance": lambda: nk.InstanceNorm1d(6, EPS, MOMENTUM, affine=True, track_running_stats=True),
    "group": lambda: nk.GroupNorm(3, 6, EPS),
    "layer": lambda: nk.LayerNorm(5, EPS),
    "rms": lambda: nk.RMSNorm(5, EPS),
}
TRACKED = ["batch", "batch_cumulative", "instance"]
each_layer = pytest.mark.parametrize("name", LAYERS)
each_tracked = pytest.mark.parametrize("name", TRACKED)


def example(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in layer.state_dict().items()}


@each_layer
def test_functional_call_moves_the_given_buffers_alone(name: str) -> None:
    layer, eager, x = LAYERS[name](), LAYERS[name](), example(3, 6, 5)
    before, given = state(layer), state(layer)
    y = functional_call(layer, given, (x,))
    torch.testing.assert_close(y, eager(x))
    torch.testing.assert_close(given, eager.state_dict())
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


@each_layer
def test_grad_is_autograds_and_moves_the_statistics_once(name: str) -> None:
    layer, eager, x = LAYERS[name](), LAYERS[name](), example(3, 6, 5)
    leaf = x.clone().requires_grad_()
    eager(leaf).sin().sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(grad(lambda x: layer(x).sin().sum())(x), leaf.grad)
    torch.testing.assert_close(dict(layer.state_dict()), dict(eager.state_dict()))


@each_layer
def test_jvp_is_the_directional_derivative_and_moves_the_statistics_once(name: str) -> None:
    layer, eager = LAYERS[name]().double(), LAYERS[name]().double()
    x, t = example(3, 6, 5).double(), example(3, 6, 5, seed=1).double()
    y, dy = jvp(layer, (x,), (t,))
    torch.testing.assert_close(y, eager(x))
    torch.testing.assert_close(dict(layer.state_dict()), dict(eager.state_dict()))
    h = 1e-6
    fresh = LAYERS[name]().double()
    torch.testing.assert_close(dy, (fresh(x + h * t) - fresh(x - h * t)) / (2 * h), rtol=1e-6, atol=1e-6)


@each_layer
def test_jacrev_of_a_training_layer_is_its_jacobian(name: str) -> None:
    layer, x = LAYERS[name](), example(2, 6, 5)
    expected = torch.autograd.functional.jacobian(LAYERS[name](), x)
    torch.testing.assert_close(jacrev(layer)(x), expected)


@each_layer
def test_vmap_is_a_loop_over_the_samples(name: str) -> None:
    layer, x = LAYERS[name](), example(3, 2, 6, 5)
    expected = torch.stack([LAYERS[name]()(part) for part in x])
    torch.testing.assert_close(vmap(layer)(x), expected)


@pytest.mark.parametrize("name", ["batch", "batch_cumulative"])
def test_shared_buffers_under_vmap_move_once_by_all_samples_together(name: str) -> None:
    layer, whole, x = LAYERS[name](), LAYERS[name](), example(3, 2, 6, 5)
    vmap(layer)(x)
    whole(x.flatten(0, 1))
    torch.testing.assert_close(dict(layer.state_dict()), dict(whole.state_dict()))


@each_tracked
def test_an_ensembles_buffers_move_each_by_its_own_sample(name: str) -> None:
    models = [LAYERS[name]() for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    x = example(3, 2, 6, 5)
    y = vmap(lambda p, b, x: functional_call(models[0], (p, b), (x,)))(parameters, buffers, x)
    for i, model in enumerate(models):
        torch.testing.assert_close(y[i], model(x[i]))
        for key, value in model.named_buffers():
            torch.testing.assert_close(buffers[key][i], value)


@each_tracked
def test_per_sample_gradients_move_the_statistics(name: str) -> None:
    layer, x = LAYERS[name](), example(3, 2, 6, 5)
    parameters = {k: v.detach() for k, v in layer.named_parameters()}
    per_sample = vmap(grad(lambda p, x: functional_call(layer, p, (x,)).sin().sum()), in_dims=(None, 0))(parameters, x)
    for i in range(3):
        single = LAYERS[name]()
        single(x[i]).sin().sum().backward()
        for key, value in single.named_parameters():
            assert value.grad is not None
            torch.testing.assert_close(per_sample[key][i], value.grad)
    assert layer.num_batches_tracked == 1
    assert not torch.equal(layer.running_mean, torch.zeros(6))
