"""Ensembles by torch.func: stacked models under vmap are the models one after the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from tests.ecosystem.nets import OURS, images, labels, net

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
COUNT = 3


def ensemble(name: str) -> list[nn.Module]:
    models = [OURS[name]() for _ in range(COUNT)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return models


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", OURS)
def test_outputs_gradients_and_statistics_are_those_of_each_model(name: str, training: bool) -> None:
    models = [model.train(training) for model in ensemble(name)]
    theirs = [net(nn).train(training) for _ in models]
    for model, other in zip(models, theirs, strict=True):
        other.load_state_dict(model.state_dict())
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def loss(parameters: dict, buffers: dict, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(base, (parameters, buffers), (x,)), labels())

    found = vmap(grad(loss), in_dims=(0, 0, None))(parameters, buffers, images())
    for i, other in enumerate(theirs):
        nn.functional.cross_entropy(other(images()), labels()).backward()
        for key, parameter in other.named_parameters():
            torch.testing.assert_close(found[key][i], parameter.grad, rtol=1e-3, atol=1e-5)  # sums that cancel
        for key, buffer in other.named_buffers():
            torch.testing.assert_close(buffers[key][i], buffer, rtol=1e-5, atol=1e-6)
