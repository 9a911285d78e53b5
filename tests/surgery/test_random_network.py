"""Surgery on random networks: outputs and gradients before and after agree, and the model that came in is
bit-identical.

Everything is float64. Up to nine steps, each amplifying an error of 1e-16 by the condition of its statistics (three
samples, four or more positions: a variance down to 1e-4 of the mean square in the worst draws); 1e-8 leaves four
digits of room, and a wrong fold, a lost activation or a shifted border is of the order of 1e-2.
"""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

from normkit.surgery import accelerate, changes, convert, fold, freeze, unfreeze

from .models import close, outputs, same_state, state
from .random_network import BATCH, Network, networks

SAME = 1e-8
FEW = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=2200, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def norms(model: nn.Module) -> list[str]:
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def trained(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, gradients and running statistics of a training step, dropout drawn from the same seed."""
    model, x = copy.deepcopy(model).train(), x.clone().requires_grad_()
    torch.manual_seed(0)
    y = model(x)
    sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum() for t in y).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return [*y, *([] if x.grad is None else [x.grad]), *gradients, *statistics]


def surgery_keeps_the_function(network: Network) -> None:
    model, x = network.build(), network.example_input()
    names = norms(model)
    if not names:
        return
    before, model = state(model), model.eval()
    expected, step = outputs(model, x), trained(model, x)

    folded = fold(model, x)
    close(outputs(folded, x), expected, SAME)
    assert [entry.name for entry in changes(folded)] == names

    fast = accelerate(model, x)
    close(outputs(fast, x), expected, SAME)
    close(trained(fast, x), step, SAME, joint=True)
    assert {entry.action for entry in changes(fast)} == {"replaced"}
    close(outputs(fold(fast, x), x), expected, SAME)

    frozen = freeze(model)
    close(outputs(frozen, x), expected, SAME)
    same_state(unfreeze(frozen), before)
    if any(isinstance(module, BATCH) for module in model.modules()):
        same_state(convert(convert(model, "sync", only=BATCH), "torch"), before)
    same_state(model, before)


@FEW
@given(networks())
def test_surgery_keeps_the_function_of_random_networks(network):
    surgery_keeps_the_function(network)


@pytest.mark.nightly
@MANY
@given(networks())
def test_surgery_keeps_the_function_of_many_random_networks(network):
    surgery_keeps_the_function(network)
