"""The flow of a run: who feeds a layer, who reads its output, and a model that is given back as it was."""

import random
from dataclasses import dataclass

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES, register_pytree_node

from normkit.model.dataflow import call_with, observe


class Net(nn.Module):
    """A conv and a norm, and between them and after them whatever `between` and `after` do."""

    def __init__(self, between=lambda net, y: y, after=lambda net, y: y):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.between, self.after = between, after

    def forward(self, x):
        return self.after(self, self.bn(self.between(self, self.conv(x))))


X = torch.ones(2, 3, 6, 6)


def names(calls):
    return [call.module or call.op for call in calls]


def test_a_norm_knows_what_feeds_it_and_who_reads_it():
    flow = observe(Net(after=lambda net, y: net.relu(y)).eval(), X)
    (call,) = flow.calls_of("bn")
    assert flow.producer(call.inputs[0]).module == "conv"
    assert names(flow.consumers(call.inputs[0])) == ["bn"]
    assert names(flow.consumers(call.outputs[0])) == ["relu"]
    assert flow.scope(call) == ""
    assert flow.values[call.inputs[0]].shape == (2, 4, 4, 4)


def stash(net, y):
    net.stashed = y
    return y


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y * 2


READERS = {
    "a function": (lambda net, y: y + y.sum() * 0, ["sum", "add"]),
    "an operator in place": (lambda net, y: y.mul_(2), ["mul_"]),
    "a view": (lambda net, y: y[:, :], ["__getitem__"]),
    "a slice that is dropped": (lambda net, y: (y[0], y)[1], ["__getitem__", "bn"]),
    "a transpose attribute": (lambda net, y: (y.mT, y)[1], ["mT", "bn"]),
    "a value taken to Python": (lambda net, y: (y.sum().item(), y)[1], ["sum", "bn"]),
    "a bridge to numpy": (lambda net, y: (y.numpy(), y)[1], ["numpy", "bn"]),
    "an autograd function": (lambda net, y: Doubling.apply(y), ["mul"]),
    "an operator called by its handle": (lambda net, y: torch.ops.aten.relu(y), ["relu"]),
}


@pytest.mark.parametrize(("between", "expected"), READERS.values(), ids=READERS)
def test_every_way_of_reading_a_tensor_is_seen(between, expected):
    flow = observe(Net(between).eval(), X)
    assert names(flow.consumers(flow.calls_of("conv")[0].outputs[0])) == expected


HANDED_ON = {
    "nothing": lambda net, y: y,
    "shape, dtype, device, size, len": lambda net, y: (y.shape, y.dtype, y.device, y.size(0), len(y), y.dim(), y)[-1],
    "Identity": lambda net, y: nn.Identity()(y),
    "dropout in evaluation": lambda net, y: F.dropout(y, training=False),
    "contiguous of a dense tensor": lambda net, y: y.contiguous(),
    "to its own dtype": lambda net, y: y.to(torch.float32),
    "only its shape": lambda net, y: (X.new_ones(64 * 2).reshape_as(y), y)[1],
}


@pytest.mark.parametrize("between", HANDED_ON.values(), ids=HANDED_ON)
def test_what_hands_a_tensor_on_reads_nothing(between):
    flow = observe(Net(between).eval(), X)
    (call,) = flow.calls_of("bn")
    assert flow.producer(call.inputs[0]).module == "conv"
    assert names(flow.consumers(call.inputs[0])) == ["bn"]


def test_a_scripted_function_is_seen_by_its_operators():
    scripted = torch.jit.script(_scriptable)
    flow = observe(Net(lambda net, y: scripted(y)).eval(), X)
    assert names(flow.consumers(flow.calls_of("conv")[0].outputs[0])) == ["aten.mul.Tensor"]


def _scriptable(y: Tensor) -> Tensor:
    return y * y


def test_an_in_place_operation_makes_a_new_value():
    flow = observe(Net(lambda net, y: F.relu_(y)).eval(), X)
    made, read = flow.calls_of("conv")[0].outputs[0], flow.calls_of("bn")[0].inputs[0]
    assert made != read
    assert flow.producer(read).op == "relu_"


def test_outputs_and_stashed_tensors_escape():
    flow = observe(Net(stash, after=lambda net, y: {"out": y, "twice": [y + 1]}).eval(), X)
    assert flow.output_names == ("output['out']", "output['twice'][0]")
    assert "output" in flow.escapes(flow.calls_of("bn")[0].outputs[0])
    assert "holds" in flow.escapes(flow.calls_of("conv")[0].outputs[0])
    assert observe(Net().eval(), X).escapes(flow.calls_of("conv")[0].outputs[0]) is None


def test_a_parameter_read_outside_of_its_layer_is_seen():
    flow = observe(net := Net(after=lambda net, y: y * net.conv.weight.sum()).eval(), X)
    assert names(flow.parameter_consumers(net.conv.weight)) == ["conv", "sum"]
    assert names(flow.parameter_consumers(net.bn.running_var)) == ["bn"]


def test_a_shared_module_has_one_name_and_several_calls():
    relu = nn.ReLU()
    flow = observe(nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu), torch.ones(2, 3))
    assert [flow.producer(call.inputs[0]).module for call in flow.calls_of("1")] == ["0", "2"]


def test_a_leaf_is_looked_at_as_one_step_and_a_container_is_looked_through():
    flow = observe(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.BatchNorm2d(4))).eval(), X)
    (call,) = flow.calls_of("1.0")
    assert flow.producer(call.inputs[0]).module == "0.0"
    assert [entry.module for entry in flow.calls if entry.atom] == ["0.0", "1.0"]


@pytest.mark.parametrize("fails", [False, True], ids=["runs", "raises"])
def test_the_model_is_given_back_as_it_was(fails):
    def after(net, y):
        net.bn.running_mean = torch.zeros(4)  # a re-assigned buffer, and a mode changed on the way
        net.relu.eval()
        if fails:
            raise KeyError("on the way")
        return F.dropout(y)

    net = Net(after=after).train()
    buffers = dict(net.named_buffers())
    values = {name: buffer.clone() for name, buffer in buffers.items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    x = X.clone()
    if fails:
        with pytest.raises(KeyError):
            observe(net, x)
    else:
        observe(net, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in net.modules())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    for name, buffer in net.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, values[name])


@dataclass(frozen=True)
class Batch:
    image: Tensor
    more: list[Tensor]


class InPlace(nn.Module):
    def forward(self, input):
        for x in [input.image, *input.more] if isinstance(input, Batch) else [input]:
            x.add_(1)  # what twice would undo is not seen
        return input


GIVEN = {"tensor": X, "tuple": (X,), "dict": {"input": X}, "dataclass": Batch(X, [X]), "nested": (Batch(X, [X, X]),)}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_example_inputs_are_cloned_before_a_forward_works_in_place_on_them(given):
    before = X.clone()
    call_with(InPlace(), given)
    observe(InPlace(), given)
    assert torch.equal(X, before)


def test_random_states_of_python_and_numpy_are_given_back():
    def draws(net, y):
        return y * random.random() * numpy.random.rand()

    before = random.getstate(), numpy.random.get_state()[1].tobytes()
    observe(Net(draws), X)
    assert (random.getstate(), numpy.random.get_state()[1].tobytes()) == before


def test_a_tensor_in_a_dataclass_is_an_input_and_an_output():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, batch):
            return Batch(self.net(batch.image), [batch.more[0] * 2])

    flow = observe(Wrapped().eval(), Batch(X, [X.clone()]))
    assert len(flow.inputs) == 2
    assert flow.output_names == ("output.image", "output.more[0]")
    assert flow.escapes(flow.calls_of("net.bn")[0].outputs[0]) == "it is an output of the model"


class Keyless(dict):
    """As the outputs of model libraries are: a mapping that was registered as a pytree node without keys."""


class KeylessPair(list):
    """No mapping either."""


def registered(kind):
    def flatten(tree):
        return (list(tree.values()), list(tree)) if isinstance(tree, dict) else (list(tree), None)

    def unflatten(values, keys):
        return kind(values) if keys is None else kind(zip(keys, values, strict=True))

    if kind not in SUPPORTED_NODES:
        register_pytree_node(kind, flatten, unflatten)
    return kind


def test_nodes_that_were_registered_without_keys_are_looked_into():
    mapping, pair = registered(Keyless), registered(KeylessPair)

    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, batch):
            y = self.net(batch["image"])
            return mapping(sample=y, more=pair([y * 2, None]))

    flow = observe(Outputs().eval(), {"batch": mapping(image=X)})
    assert flow.output_names == ("output['sample']", "output['more'][0]")
    assert len(flow.inputs) == 1
    assert flow.escapes(flow.calls_of("net.bn")[0].outputs[0]) == "it is an output of the model"
    assert torch.equal(X, torch.ones_like(X))
