"""Weight standardization: the formula, its gain, what is trained and saved, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import normkit as nk

EPS = 3e-3
standardize = nk.parametrizations.weight_standardization
MODULES: dict[str, tuple[Any, int]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), 0),
    "Conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), 0),
    "Linear": (lambda: nn.Linear(5, 7), 0),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3), 1),
}
each = pytest.mark.parametrize("name", MODULES)


def formula(weight: Tensor, axis: int) -> Tensor:
    filters = weight.movedim(axis, 0)
    flat = filters.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + EPS).sqrt()
    return flat.view_as(filters).movedim(0, axis)


@each
def test_each_outputs_filter_is_standardized(name: str) -> None:
    make, axis = MODULES[name]
    module = make().double()
    before = module.weight.detach().clone().requires_grad_()
    assert standardize(module, eps=EPS) is module
    torch.testing.assert_close(module.weight, formula(before, axis))
    slope = torch.randn(before.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(module.weight, module.parametrizations.weight.original, slope)
    torch.testing.assert_close(found, torch.autograd.grad(formula(before, axis), before, slope)[0])


@each
def test_a_gain_of_each_output_is_learned(name: str) -> None:
    make, axis = MODULES[name]
    module = make()
    before = module.weight.detach().clone()
    standardize(module, eps=EPS, gain=0.5)
    gain = module.parametrizations.weight[0].gain
    assert gain.shape == (before.shape[axis],)
    torch.testing.assert_close(module.weight, 0.5 * formula(before, axis))
    with torch.no_grad():
        gain[0] = 2.0
    torch.testing.assert_close(module.weight.select(axis, 0), 2 * formula(before, axis).select(axis, 0))


def test_state_copies_and_the_way_back() -> None:
    module = standardize(nn.Conv2d(3, 4, 3), gain=1.0)
    assert {"parametrizations.weight.original", "parametrizations.weight.0.gain"} <= set(module.state_dict())
    other = standardize(nn.Conv2d(3, 4, 3), gain=1.0)
    other.load_state_dict(module.state_dict())
    x, weight = torch.randn(2, 3, 5, 5), module.weight.detach().clone()
    for again in (other, copy.deepcopy(module)):
        assert torch.equal(again(x), module(x))
    parametrize.remove_parametrizations(module, "weight")
    assert type(module) is nn.Conv2d
    assert torch.equal(module.weight, weight)


def test_half_weights_are_standardized_in_wide_numbers() -> None:
    module = nn.Linear(64, 8).bfloat16()
    with torch.no_grad():
        module.weight.add_(3)
    before = module.weight.detach().clone()
    standardize(module, eps=EPS)
    assert torch.equal(module.weight, formula(before.double(), 0).bfloat16())


def test_another_parameter_by_its_name() -> None:
    module = nn.MultiheadAttention(8, 2)
    before = module.in_proj_weight.detach().clone()
    standardize(module, "in_proj_weight", EPS)
    torch.testing.assert_close(module.in_proj_weight, formula(before, 0))


def test_surgery_keeps_it() -> None:
    model = nn.Sequential(standardize(nn.Conv2d(3, 4, 3)), nn.GroupNorm(2, 4), nn.ReLU())
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(nk.accelerate(model, x)(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "name", "error", "text"),
    [
        (nn.ReLU(), "weight", AttributeError, "ReLU has no parameter 'weight'"),
        (nn.Linear(3, 4), "bias", ValueError, r"bias has the shape \(4,\): a filter of one value"),
        (nn.Linear(3, 4, bias=False), "bias", AttributeError, "no parameter 'bias'"),
        (nn.ConvTranspose1d(4, 4, 3, groups=2), "weight", ValueError, "several groups"),
    ],
)
def test_what_has_no_filters_is_refused(module: nn.Module, name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        standardize(module, name)


def test_an_eps_or_a_gain_that_cannot_be_is_refused_and_nothing_registered() -> None:
    layer = nn.Conv2d(3, 4, 3)
    for eps in (0.0, -1e-5, float("nan")):
        with pytest.raises(ValueError, match="eps must be above 0"):
            nk.parametrizations.weight_standardization(layer, eps=eps)
    for gain in ("1", True, torch.ones(4)):
        with pytest.raises(TypeError, match="gain must be a number"):
            nk.parametrizations.weight_standardization(layer, gain=gain)  # type: ignore[arg-type]  # on purpose
    assert not torch.nn.utils.parametrize.is_parametrized(layer)
