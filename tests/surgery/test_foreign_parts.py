"""Models with parts that are no plain modules: scripted, traced to a graph, pruned, without a shape yet."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import prune

import normkit.nn as layers
from normkit.statistics import recalibrate
from normkit.surgery import accelerate, changes, convert, fold, freeze, unfreeze

from .models import close, outputs, randomized, residual_net
from .test_accelerate import X, accelerated, reasons


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()))

    def forward(self, x):
        return F.relu(self.bn(self.conv(self.scripted(x))))


OPERATIONS = {
    "accelerate": lambda model: accelerate(model, X),
    "convert": lambda model: convert(model, "batch"),
    "fold": lambda model: fold(model, X),
    "freeze": freeze,
    "freeze and back": lambda model: unfreeze(freeze(model)),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_scripted_part_stays_and_its_norms_are_listed(operation):
    model = Scripted().eval()
    result = operation(model)
    assert "torch.jit has compiled it" in reasons(result)["scripted.1"]
    close(outputs(result, X), outputs(model, X), 1e-5)
    with pytest.raises(ValueError, match=r"all 1 normalization layers are compiled by torch\.jit"):
        operation(model.scripted)


def test_a_graph_module_is_replaced_but_not_rewritten():
    """Its copies make their forward from the graph."""

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return F.relu(self.bn(x * 2) + x)

    result = accelerated(fx.symbolic_trace(Adds()))
    assert "copies of a GraphModule" in reasons(result)["bn"]
    close(outputs(copy.deepcopy(result), X.double()), outputs(result, X.double()), 0)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.LayerNorm(9), nn.GroupNorm(3, 3)])
def test_a_pruned_norm_is_kept(norm):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU()).eval()
    prune.l1_unstructured(norm, "weight", amount=1)
    expected = outputs(model, X)
    accelerate(model, X, inplace=True)
    assert "weight_orig" in reasons(model)["1"]
    close(outputs(model, X), expected, 0)


def test_a_subclass_with_a_state_of_its_own_is_kept():
    class Counting(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.register_buffer("calls", torch.zeros(()))

    result = accelerated(nn.Sequential(nn.Conv2d(3, 4, 1), Counting(4), nn.ReLU()))
    assert "it holds calls" in reasons(result)["1"]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("verify", [True, False])
def test_a_lazy_model_has_to_run_first(verify):
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d(), nn.ReLU())
    with pytest.raises(RuntimeError, match="run it once"):
        accelerate(model, X, verify, inplace=True)
    for operation in (lambda: accelerate(model, X, verify), lambda: fold(model, X), lambda: convert(model, "group")):
        with pytest.raises(RuntimeError, match="run it once"):
            operation()
    model(X)
    accelerate(model, X, verify, inplace=True)
    assert type(model[1]) is layers.BatchNorm2d


OF_VALUES = {
    "accelerate": lambda model: accelerate(model, X),
    "fold": lambda model: fold(model, X),
    "recalibrate": lambda model: recalibrate(model, [X]),
}


@pytest.mark.parametrize("operation", OF_VALUES.values(), ids=OF_VALUES)
def test_a_model_without_values_has_to_be_loaded_first(operation):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, device="meta"), nn.ReLU()).eval()
    with pytest.raises(RuntimeError, match=r"^1\.weight is on the meta device and has no values: load the weights"):
        operation(model)
    assert type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize("verify", [True, False])
def test_a_model_that_fails_is_given_back(verify):
    model = randomized(residual_net())
    before = dict(model.named_modules())
    with pytest.raises(TypeError):
        accelerate(model, (X, X), verify, inplace=True)
    assert dict(model.named_modules()) == before
    assert not changes(model)


def test_what_is_no_model_is_told_so():
    with pytest.raises(TypeError, match="expected a model"):
        accelerate(nn.BatchNorm2d, X)
