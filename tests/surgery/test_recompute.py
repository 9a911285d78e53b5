"""accelerate(recompute=True): the same model, and its training forward keeps recipes; copied, saved and compiled."""

import copy
import io
import threading

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from normkit import _torch
from normkit.functional import _autograd, recompute
from normkit.surgery import accelerate, changes, fold
from normkit.surgery.recompute import add
from tests.kernels.native_isa import needs_native

from .models import close, outputs, randomized, residual_net, state
from .test_accelerate import gradients

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
WAYS = {
    "as it is": lambda model: model,
    "deepcopy": copy.deepcopy,
    "saved and loaded": lambda model: torch.load(saved(model), weights_only=False),
    "accelerated again": lambda model: accelerate(model, X, recompute=True),
}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def accelerated(recompute=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return accelerate(randomized(residual_net()), X, recompute=recompute)


def recomputes(model, x=X):
    """Whether the first norm's output, which the block behind it keeps in training, is gone after the forward."""
    seen = []
    model = copy.deepcopy(model)
    # a hook on the norm or on the ReLU would part them
    model[3].register_forward_pre_hook(lambda module, inputs: seen.append(StorageWeakRef(inputs[0].untyped_storage())))
    out = model(x)
    gone = seen[0].expired()
    del out
    return gone


@needs_native
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_training_forward_keeps_recipes(way):
    model = way(accelerated()).train()
    assert recomputes(model)
    assert not recomputes(accelerated(recompute=False).train())
    assert not recomputes(model.eval())
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
    handle = model.register_forward_hook(lambda module, inputs, output: None)
    assert len(model._forward_hooks) == 2
    handle.remove()


def test_it_is_the_same_model():
    plain, model = accelerated(recompute=False), accelerated()
    assert type(model) is type(plain)
    assert list(state(model)) == list(state(plain))
    for ours, theirs in zip(gradients(model, X), gradients(plain, X), strict=True):
        assert torch.equal(ours, theirs)
    close(outputs(fold(model.eval(), X), X), outputs(plain.eval(), X), 1e-5)


def test_changes_lists_it():
    entry = changes(accelerated())[""]
    assert (entry.operation, entry.action, entry.after) == ("accelerate", "replaced", "Sequential")
    assert "computed again in the backward" in entry.reason
    odd = nn.Sequential(nn.Conv2d(3, 4, 1), Odd(4))
    assert changes(accelerate(odd, X, recompute=True))[""].action == "kept"


class Odd(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class Fails(nn.Module):
    def forward(self, x):
        raise ZeroDivisionError


def test_an_exception_in_the_forward_leaves_nothing_on():
    model = accelerated().train()
    model.append(Fails())
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            model(X)
        assert _autograd.output_listener is None
        assert recompute._local.recorder is None


class Interrupted(nn.Module):
    """A Ctrl-C in its first call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 1:
            raise KeyboardInterrupt
        return x


def test_an_interrupted_forward_is_left_by_the_next():
    model = accelerated().train()
    model.append(Interrupted())
    outer = nn.Sequential(model)
    add(outer)
    with pytest.raises(KeyboardInterrupt):
        outer(X)
    outer(X).sum().backward()
    assert _autograd.output_listener is None
    assert recompute._local.recorder is None
    assert _torch.saved_tensors_hooks_top() is None


def test_hooks_of_others_win():
    """A checkpoint keeps less than recipes do; where hooks are forbidden the forward is the plain one."""
    model, expected = accelerated().train(), gradients(accelerated(), X)
    whole = Checkpointed(model)
    for ours, theirs in zip(gradients(whole, X), expected, strict=True):
        assert torch.equal(ours, theirs)
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        model(X).sum().backward()


class Checkpointed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return checkpoint(self.model, x, use_reentrant=False)


def test_threads_have_their_own_context():
    model, expected = accelerated().train(), gradients(accelerated(), X)
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: gradients(copy.deepcopy(model), X)})) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got in found.values():
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours, theirs)
    assert len(found) == 3
    assert _autograd.output_listener is None


def test_transforms_take_the_model():
    """torch.func allows no hooks on saved tensors: there the forward is the plain one."""
    model = accelerated().double().train()
    x = X.double()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    got = torch.func.grad(lambda p: torch.func.functional_call(model, (p, buffers), (x,)).square().sum())(parameters)
    model(x).square().sum().backward()
    close(list(got.values()), [p.grad for p in model.parameters()], 1e-9, joint=True)


@pytest.mark.filterwarnings("ignore")  # Dynamo warns about itself
def test_it_compiles_as_one_graph():
    model = accelerated().train()
    expected = gradients(accelerated(), X)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    y = compiled(X)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    close([y], expected[:1], 1e-5)
    close([p.grad for p in compiled.parameters()], expected[2 : 2 + len(list(model.parameters()))], 1e-4, joint=True)
    torch._dynamo.reset()
