"""A model is given back as it was: the same objects with the same content, whatever was done to it."""

import random
from collections import deque

import numpy
import pytest
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from normkit.model.kept import MODES, Kept
from normkit.model.restore import Restored, in_both_modes

from .portrait import differences, portrait


class Net(nn.Module):
    """One of everything that a module may hold."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()
        self.children_too = [self.conv, self.bn]
        self.options, self.names, self.seen, self.nested = {"a": 1}, {"b"}, deque([1, 2]), ([{"deep": [1]}],)
        self.calls, self.constant = 0, torch.tensor([1.0, float("nan"), -0.0])
        self.conv.weight.grad = torch.ones_like(self.conv.weight)
        self.conv.register_forward_hook(lambda *_: None)

    def forward(self, x):
        return self.drop(self.bn(self.conv(x)))


class Function(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def training_step(net):
    with torch.enable_grad():
        net.train()(torch.randn(2, 3, 4, 4)).sum().backward()


CHANGES = {
    "a forward in training": lambda net: net.train()(torch.randn(2, 3, 4, 4)),
    "a backward": training_step,
    "modes": lambda net: net.bn.eval(),
    "a hook": lambda net: net.bn.register_forward_pre_hook(lambda *_: None),
    "a hook gone": lambda net: net.conv._forward_hooks.clear(),
    "a child replaced": lambda net: setattr(net, "bn", nn.Identity()),
    "a child added": lambda net: net.add_module("more", nn.ReLU()),
    "a child gone": lambda net: delattr(net, "drop"),
    "the order of the children": lambda net: net._modules.move_to_end("conv") if hasattr(
        net._modules, "move_to_end") else net._modules.update(conv=net._modules.pop("conv")),
    "a list of children": lambda net: net.children_too.reverse(),
    "a dict": lambda net: net.options.update(a=2, c=3),
    "a set": lambda net: net.names.add("c"),
    "a deque": lambda net: net.seen.append(3),
    "something deep": lambda net: net.nested[0][0]["deep"].append(2),
    "an attribute": lambda net: setattr(net, "calls", 1),
    "an attribute gone": lambda net: delattr(net, "calls"),
    "a new attribute": lambda net: setattr(net, "cache", torch.ones(1)),
    "a constant": lambda net: net.constant.fill_(7),
    "the sign of a zero": lambda net: net.constant.abs_(),
    "a forward on the instance": lambda net: setattr(net.bn, "forward", lambda x: x),
    "a class": lambda net: setattr(net.bn, "__class__", nn.InstanceNorm2d),
    "a parameter's values": lambda net: net.conv.weight.add_(1),
    "a parameter's values past autograd": lambda net: net.conv.weight.data.clamp_(max=0),
    "a parameter's memory": lambda net: setattr(net.conv.weight, "data", torch.zeros(2)),
    "a parameter's dtype": lambda net: net.half(),
    "another parameter": lambda net: setattr(net.conv, "weight", nn.Parameter(torch.ones(4, 3, 1, 1))),
    "a parameter gone": lambda net: setattr(net.conv, "bias", None),
    "requires_grad": lambda net: net.conv.weight.requires_grad_(False),
    "a gradient gone": lambda net: net.zero_grad(),
    "a gradient's values": lambda net: net.conv.weight.grad.mul_(2),
    "a new gradient": lambda net: setattr(net.bn.weight, "grad", torch.ones(4)),
    "a buffer's values": lambda net: net.bn.running_var.zero_(),
    "another buffer": lambda net: setattr(net.bn, "running_mean", torch.ones(4)),
    "a buffer added": lambda net: net.register_buffer("more", torch.ones(1), persistent=False),
    "torch's random numbers": lambda net: torch.rand(1),
    "Python's random numbers": lambda net: random.random(),
    "NumPy's random numbers": lambda net: numpy.random.rand(),
    "gradient mode": lambda net: torch.set_grad_enabled(False),
    "autocast": lambda net: torch.set_autocast_enabled("cpu", True),
    "a function mode": lambda net: Function().__enter__(),
    "a dispatch mode": lambda net: Dispatch().__enter__(),
}  # fmt: skip


@pytest.mark.parametrize("fails", [False, True], ids=["runs", "raises"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_model_is_given_back_as_it_was(change, fails):
    net = Net()
    before = portrait(net)

    def changed():
        with Restored(net) as restored, restored:
            change(net)
            assert differences(before, portrait(net))
            if fails:
                raise KeyError

    if fails:
        with pytest.raises(KeyError):
            changed()
    else:
        changed()
    assert differences(before, portrait(net)) == []


def test_what_was_not_written_is_not_written_by_giving_back():
    net = Net().eval()
    net.bn.running_mean.fill_(float("nan"))
    versions = [tensor._version for tensor in (*net.parameters(), *net.buffers(), net.constant)]
    with Restored(net) as restored, restored:
        net(torch.randn(2, 3, 4, 4))
    assert [tensor._version for tensor in (*net.parameters(), *net.buffers(), net.constant)] == versions


def test_an_inference_tensor_comes_back():
    net = nn.BatchNorm1d(2)
    with torch.inference_mode():
        net.running_mean = torch.tensor([1.0, 2.0])
    with Restored(net) as restored, restored, torch.inference_mode():
        net.running_mean.zero_()
    assert net.running_mean.tolist() == [1.0, 2.0]


def test_a_scripted_module_comes_back():
    net = torch.jit.script(nn.Sequential(nn.BatchNorm1d(2)).eval())
    with Restored(net) as restored, restored:
        net.train()(torch.randn(4, 2))
        assert net[0].running_mean.abs().sum() > 0
    assert not net.training
    assert not net[0].training
    assert net[0].running_mean.tolist() == [0.0, 0.0]


def test_a_graph_module_comes_back_with_the_code_of_its_class():
    net = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    x = torch.randn(3, 2)
    expected, code = net(x), net.code
    with Restored(net) as restored, restored:
        for node in net.graph.nodes:
            node.args = (next(iter(net.graph.nodes)),) if node.op == "output" else node.args
        net.graph = fx.Graph(net)  # another forward, which torch.fx puts on the class
    assert net.code == code
    assert torch.equal(net(x), expected)


def test_a_lazy_layer_that_got_its_shape_keeps_it():
    net = nn.Sequential(nn.LazyLinear(2), nn.Dropout())
    x = torch.randn(3, 4)
    with Restored(net, evaluating=True) as restored, restored:
        assert not net[1].training
        net(x)
    assert net(x).shape == (3, 2)
    assert net[0].training
    assert type(net[0]) is nn.Linear


def test_only_the_attributes_asked_for_come_back():
    net = Net()
    kept = Kept(net, only=(*MODES, "calls", "absent"))
    net.eval()
    net.calls, net.absent, net.other = 5, 1, 2
    net.options["a"] = 9
    kept.give_back()
    assert all(module.training for module in net.modules())
    assert (net.calls, net.other, net.options["a"]) == (0, 2, 9)
    assert not hasattr(net, "absent")


def test_changed_attributes_are_named():
    net = Net()
    kept = Kept(net)
    assert kept.changed() == []
    net.calls, net.bn.cache = 1, None
    net.options["a"] = 2
    net.constant.add_(1)
    assert set(kept.changed()) == {"calls", "options", "constant", "bn.cache"}


def test_memory_that_was_freed_is_given_again():
    net = Net()
    before = net.bn.running_var.clone()
    with Restored(net) as restored, restored:
        net.bn.running_var.untyped_storage().resize_(0)
    assert torch.equal(net.bn.running_var, before)


def test_one_tensor_that_cannot_be_written_keeps_no_other_from_coming_back():
    net = Net()
    net.bn.running_mean = torch.zeros(1).expand(4)

    def changed():
        with Restored(net) as restored, restored:
            net.bn.running_mean[:1].fill_(3)
            net.bn.running_var.fill_(3)

    with pytest.raises(RuntimeError, match="single memory location"):
        changed()
    assert net.bn.running_var.eq(1).all()


def test_a_run_in_training_that_fails_gives_evaluation_alone():
    class OnlyEvaluates(nn.Module):
        def forward(self):
            assert not self.training
            return 1

    net = OnlyEvaluates()
    assert in_both_modes(net, net) == {False: 1}
    assert net.training
