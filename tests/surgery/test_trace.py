"""A forward that does more than a trace holds keeps its forward: its norms are replaced, and nothing is lost."""

import copy
import inspect
import random
import threading
from dataclasses import dataclass

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit.nn as layers
from normkit.surgery import accelerate, changes

from .models import close, randomized
from .test_accelerate import FUSED, Block, X, accelerated, reasons


class Reversed(torch.autograd.Function):
    """The gradient's sign changes; nothing is done that a trace could see."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, dy):
        return -dy


def without_gradients(m, x):
    with torch.no_grad():
        y = x * 2
    return F.relu(m.bn(m.conv(y))) + x


def without_autocast(m, x):
    with torch.autocast("cpu", enabled=False):
        y = m.conv(x)
    return F.relu(m.bn(y))


def stashes(m, x):
    m.stashed = m.conv(x)
    return F.relu(m.bn(m.stashed))


def counts(m, x):
    m.count += 1
    return F.relu(m.bn(m.conv(x)))


def collects(m, x):
    m.collected.append(y := m.conv(x))
    return F.relu(m.bn(y))


KEPT: list[Tensor] = []


def hands_out(m, x):
    KEPT[:] = [y := m.conv(x)]
    return F.relu(m.bn(y))


def sometimes(draw):
    return lambda m, x: F.relu(m.bn(m.conv(x) if draw() < 0.5 else 2 * m.conv(x)))


LOST = {
    "no_grad": (without_gradients, "a context of its own"),
    "autocast": (without_autocast, "a context of its own"),
    "a checkpoint": (lambda m, x: F.relu(m.bn(checkpoint(m.conv, x, use_reentrant=False))), "a context of its own"),
    "an old checkpoint": (lambda m, x: F.relu(m.bn(checkpoint(m.conv, x, use_reentrant=True))), "a context of its"),
    "an autograd function": (lambda m, x: F.relu(m.bn(m.conv(Reversed.apply(x)))), "autograd function Reversed"),
    "a stash": (stashes, "the attribute stashed"),
    "a counter": (counts, "the attribute count"),
    "a list": (collects, "the attribute collected"),
    "a list of somebody else": (hands_out, "something still holds"),
    "random numbers of Python": (sometimes(random.random), "random numbers"),
    "random numbers of NumPy": (sometimes(numpy.random.rand), "random numbers"),
    "random numbers of torch": (sometimes(lambda: torch.rand(()).item()), "random numbers"),
    "a tensor made there": (lambda m, x: F.relu(m.bn(m.conv(x))) * torch.arange(9.0), "a tensor of its own"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("forward", "reason"), LOST.values(), ids=LOST)
def test_what_a_trace_loses_is_not_lost(forward, reason):
    model = Block(forward)
    model.count, model.collected = 0, []
    numpy.random.seed(0)
    random.seed(0)
    result = accelerate(model.double(), X.double())
    assert reason in reasons(result)["bn"]
    assert type(result.bn) is layers.BatchNorm2d
    if reason != "random numbers":  # each of its runs is another
        accelerated(model)


def test_a_buffer_is_read_at_each_call():
    model = Block(lambda m, x: F.relu(m.bn(m.conv(x))) * (m.scale * 2))
    model.register_buffer("scale", torch.ones(()))
    result = accelerated(model)
    assert reasons(result)["bn"].startswith("fused")
    before = result.eval()(X.double())
    result.scale.fill_(3)
    close([result(X.double())], [3 * before], 0)
    assert not [name for name in result.__dict__ if "_tensor_constant" in name]


def test_a_forward_that_moves_a_buffer_moves_it_once_a_call():
    model = Block(lambda m, x: F.relu(m.bn(m.conv(x))) * m.count.add_(1))
    model.register_buffer("count", torch.zeros(()))
    result = accelerated(model)
    assert result.count == 0


@dataclass
class Output:
    before: Tensor
    after: Tensor


class Anything:
    def __init__(self, before, after):
        self.before, self.after = before, after


@pytest.mark.parametrize(("kind", "reason"), [(Output, "output of the model"), (Anything, "something still holds it")])
def test_an_output_inside_of_an_object_is_an_output(kind, reason):
    model = randomized(Block(lambda m, x: kind(y := m.bn(m.conv(x)), m.relu(y)))).eval()
    result = accelerate(model, X)
    assert reason in reasons(result)["bn"]
    close([result(X).before], [model(X).before], 1e-5)
    assert [error.output for error in changes(result).errors] == (
        ["output.before", "output.after"][: 2 * (kind is Output)]
    )


class Head(nn.Module):
    """With one image the last norm cannot train: it has one value a channel."""

    def __init__(self, forward):
        super().__init__()
        self.body, self.drop, self.act = Block(lambda m, x: m.bn(m.conv(x))), nn.Dropout(), nn.Sigmoid()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
        self.run = forward

    def forward(self, x):
        return self.head(self.run(self, self.body(x)))


IN_TRAINING = {
    "dropout": lambda m, y: m.act(m.drop(y)),
    "a function": lambda m, y: m.act(F.dropout(y, 0.5, m.training)),
    "a branch": lambda m, y: m.act(y * 2 if m.training else y),
}


@pytest.mark.parametrize("forward", IN_TRAINING.values(), ids=IN_TRAINING)
def test_training_is_seen_with_one_image_too(forward):
    model = randomized(Head(forward)).double()
    result = accelerate(model, X[:1].double())
    assert "followed by" in reasons(result)["body.bn"]
    torch.manual_seed(0)
    expected = model.train()(X.double())
    torch.manual_seed(0)
    close([result.train()(X.double())], [expected], 1e-11)


def test_a_model_that_cannot_train_is_fused_where_its_trace_is_certain():
    class Detector(nn.Module):
        def __init__(self, forward):
            super().__init__()
            self.body = Block(forward)

        def forward(self, x):
            if self.training:
                raise ValueError("targets are missing")
            return self.body(x)

    fused = accelerate(Detector(FUSED["relu module"]), X)
    assert reasons(fused)["body.bn"].startswith("fused with relu")
    other = accelerate(Detector(lambda m, x: m.relu(m.bn(m.conv(x))) * (2 if m.training else 1)), X)
    assert "another one in training" in reasons(other)["body.bn"]


@pytest.mark.parametrize("example", [X, X[:1]], ids=["four images", "one image"])
@pytest.mark.parametrize("activation", [F.relu, F.silu])
def test_an_addition_broadcasts_and_promotes_as_it_did(activation, example):
    model = Block(lambda m, x: activation(m.bn(m.conv(x)) + m.position))
    model.position = nn.Parameter(torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1)))
    result = accelerate(model, example)
    close([result(X)], [model(X)], 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = result(X), model(X)
    assert ours.dtype == theirs.dtype == torch.float32
    close([ours], [theirs], 2e-2)


class Outer(nn.Module):
    """What the block adds is changed in place by somebody else."""

    def __init__(self, activation, change):
        super().__init__()
        self.conv, self.block, self.change = nn.Conv2d(3, 3, 1), Inner(activation), change

    def forward(self, x):
        residual = self.conv(x)
        return self.block(x, residual) + self.change(residual)


class Inner(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.bn, self.activation = nn.BatchNorm2d(3), activation

    def forward(self, x, residual):
        return self.activation(self.bn(x) + residual)


@pytest.mark.parametrize("change", [lambda r: r.mul_(2), lambda r: F.relu(r, inplace=True)], ids=["mul_", "relu"])
@pytest.mark.parametrize("activation", [F.silu, F.relu])
def test_a_residual_that_is_changed_later_is_not_kept_for_the_backward(activation, change):
    result = accelerated(Outer(activation, change))
    assert ("fused with the addition" in reasons(result)["block.bn"]) == (activation is F.relu)


def test_a_module_made_on_the_spot_is_what_it_computes():
    result = accelerated(Block(lambda m, x: nn.ReLU()(m.bn(m.conv(x)))))
    assert reasons(result)["bn"].startswith("fused with relu")


def test_other_threads_run_their_models_meanwhile():
    others, failures, done = randomized(Block(FUSED["relu module"])), [], threading.Event()

    def run():
        while not done.is_set():
            try:
                others(X)
                nn.functional.dropout(X)
            except Exception as error:
                failures.append(error)

    def change():
        result = accelerate(TwoInputs(), (X, X))
        fused.append(reasons(result)["bn"].startswith("fused"))

    fused: list[bool] = []
    background, threads = threading.Thread(target=run), [threading.Thread(target=change) for _ in range(4)]
    for thread in (background, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    background.join()
    assert failures == []
    assert fused == [True] * 4


# -- the new forward --------------------------------------------------------------------------------------------------
class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, input: Tensor, skip: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(input)) + skip)


def test_the_new_forward_has_the_old_signature_and_exports_by_name():
    model = randomized(TwoInputs()).eval()
    result = accelerate(model, (X, X))
    assert reasons(result)["bn"].startswith("fused")
    assert inspect.signature(result.forward) == inspect.signature(model.forward)
    batch = torch.export.Dim("batch")
    # Dynamo of 2.4 and 2.6 keeps for the whole process which functions it has once given up on
    strict = torch.__version__ >= (2, 8)
    shapes = {"input": {0: batch}, "skip": {0: batch}}
    program = torch.export.export(result, (X, X), dynamic_shapes=shapes, strict=strict)
    close([program.module()(X[:2], X[:2])], [model(X[:2], X[:2])], 1e-5)
    program = torch.export.export(result, (), {"skip": X, "input": X}, strict=strict)
    close([program.module()(skip=X, input=X)], [model(X, X)], 1e-5)


class Variable(nn.Module):
    """diffusers' ResnetBlock2D: what it no longer takes is caught by variable arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(3, 3, eps=3e-4), nn.GroupNorm(3, 3, eps=3e-4)
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.proj, self.nonlinearity, self.dropout = nn.Linear(7, 3), nn.SiLU(), nn.Dropout(0.0)

    def forward(self, input: Tensor, temb: Tensor, *args: float, scale: float = 1.0, **kwargs: float) -> Tensor:
        hidden = self.conv1(self.nonlinearity(self.norm1(input)))
        hidden = self.norm2(hidden + self.proj(self.nonlinearity(temb))[:, :, None, None])
        hidden = self.conv2(self.dropout(self.nonlinearity(hidden)))
        return (input + hidden) * (scale + sum(args) + sum(kwargs.values()))


TEMB = torch.randn(4, 7, generator=torch.Generator().manual_seed(3))


def test_a_forward_with_variable_arguments_is_fused_for_calls_that_give_none() -> None:
    model = randomized(Variable()).eval()
    result = accelerate(model, (X, TEMB))
    assert [entry.reason[:15] for entry in changes(result)] == ["fused with silu"] * 2
    assert inspect.signature(result.forward) == inspect.signature(model.forward)
    calls: list[tuple[tuple[object, ...], dict[str, object]]] = [
        ((X, TEMB), {}),
        ((X,), {"temb": TEMB}),
        ((X, TEMB, 2.0), {}),
        ((X, TEMB, 2.0, 3.0), {"other": 1.0}),
        ((X, TEMB), {"args": 4.0}),
        ((X, TEMB), {"scale": 3.0}),
    ]
    for args, kwargs in calls:
        close([result(*args, **kwargs)], [model(*args, **kwargs)], 1e-5)
    with pytest.raises(TypeError, match="temb"):
        result(X)


@pytest.mark.parametrize("more", [{"other": 2.0}, {"args": 2.0}, {"other": 2.0, "third": 1.0}], ids=str)
def test_options_of_the_run_are_those_of_the_trace(more: dict[str, float]) -> None:
    model = randomized(Variable()).eval()
    result = accelerate(model, {"input": X, "temb": TEMB, **more})
    assert [entry.reason[:15] for entry in changes(result)] == ["fused with silu"] * 2
    calls: list[dict[str, float]] = [more, dict.fromkeys(more, 3.0), {}, {**more, "fourth": 5.0}]
    for options in calls:
        close([result(X, TEMB, **options)], [model(X, TEMB, **options)], 1e-5)


def test_a_run_that_gives_variable_arguments_by_position_is_no_trace() -> None:
    model = randomized(Variable()).eval()
    reasons_of = {entry.reason for entry in changes(accelerate(model, (X, TEMB, 2.0)))}
    assert reasons_of == {
        "not fused: the forward of the model (Variable) stays: it is called with variable arguments, which a trace "
        "would fix"
    }


class Dropping(nn.Module):
    """Bart's and Whisper's way: a function that is told of the mode."""

    def __init__(self, p: float, always: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.p, self.always = nn.Conv2d(3, 3, 3, padding=1), nn.GroupNorm(3, 3), p, always

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.conv(x), p=self.p, training=True if self.always else self.training)
        return F.relu(self.norm(x))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_a_function_that_is_told_of_the_mode_is_told_at_each_call(p: float) -> None:
    model = randomized(Dropping(p)).eval()
    result = accelerate(model, X)
    assert reasons(result)["norm"].startswith("fused with relu")
    for training in (False, True, False):
        found = []
        for one in (model, result):
            torch.manual_seed(5)
            found.append(one.train(training)(X))
        close([found[1]], [found[0]], 1e-5)
    again = copy.deepcopy(result).train()
    torch.manual_seed(5)
    close([again(X)], [_seeded(model.train())], 1e-5)


def _seeded(model: nn.Module) -> Tensor:
    torch.manual_seed(5)
    return model(X)


def test_a_function_that_is_told_of_another_mode_keeps_the_forward() -> None:
    reason = reasons(accelerate(randomized(Dropping(0.0, always=True)).eval(), X))["norm"]
    assert "its forward is another one in training than in evaluation" in reason


class ByPosition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor, /) -> Tensor:
        return F.relu(self.bn(x))


def test_an_argument_by_position_only_keeps_the_forward() -> None:
    assert "takes x by position only" in reasons(accelerate(ByPosition(), X))["bn"]


def test_a_replica_of_data_parallel_runs_on_its_own_parameters_and_buffers():
    result = accelerate(randomized(TwoInputs()), (X, X))
    replica = replicated(result)
    close([replica(X, X)], [F.relu(X)], 0)  # its parameters are zeros
    assert result.bn.num_batches_tracked == 0
    assert replica.bn.num_batches_tracked == 1


def replicated(model):
    """What nn.parallel.replicate makes of a model for one device, with parameters that are zero."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter * 0)  # no Parameter: a plain attribute
        for name, buffer in module._buffers.items():
            setattr(replica, name, buffer.clone())
    return replicas[model]
