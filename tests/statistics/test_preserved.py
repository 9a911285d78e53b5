"""recalibrate gives the model back as it was, whatever happens."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import numpy
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from tests.statistics.nets import BATCH_NORMS, assert_unchanged, data, net, state


class Boom(Exception):
    pass


def failing_loader(after: int) -> Iterator[Tensor]:
    yield from data((4,) * after)
    raise Boom


class FailingLayer(nn.Module):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            torch.rand(1)
            raise Boom
        return x


def everything(model: nn.Module) -> list[object]:
    """All that a pass could leave behind, apart from the values of the state."""
    return [
        (m.training, getattr(m, "momentum", None), getattr(m, "track_running_stats", None), dict(m._forward_hooks),
         dict(m._forward_pre_hooks), sorted(m.__dict__), {n: id(b) for n, b in m._buffers.items()})
        for m in model.modules()
    ]  # fmt: skip


@pytest.mark.parametrize("norm", BATCH_NORMS.values(), ids=BATCH_NORMS)
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_nothing_but_the_statistics_differs_afterwards(norm, mode):
    model = net(norm).train(mode)
    model[3].eval()
    before, random = everything(model), torch.get_rng_state()
    nk.recalibrate(model, data((4, 1)))
    assert everything(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("where", ["loader", "layer", "forward"])
@pytest.mark.parametrize("sequential", [False, True], ids=["parallel", "sequential"])
@pytest.mark.parametrize("norm", ["torch", "normkit", "foreign"])
def test_an_exception_leaves_the_model_as_it_was(norm, where, sequential):
    model = net(BATCH_NORMS[norm])
    calls = {"count": 0}

    def forward(model: nn.Module, batch: Tensor) -> None:
        model(batch)
        calls["count"] += 1
        if where == "forward" and calls["count"] == 3:
            raise Boom

    class Reiterable:
        passes = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.passes += 1
            return failing_loader(2) if where == "loader" and self.passes == 1 + sequential else iter(data((4, 4)))

    if where == "layer":
        model.insert(3, FailingLayer(3 if sequential else 1))
    before, values, random = everything(model), state(model), torch.get_rng_state()
    if where == "layer":
        before[4] = None  # its own countdown moved, as it should
    batches = Reiterable() if sequential else (failing_loader(2) if where == "loader" else data((4, 4, 4)))
    with pytest.raises(Boom):
        nk.recalibrate(model, batches, sequential=sequential, forward=forward)
    after = everything(model)
    if where == "layer":
        after[4] = None
    assert after == before
    assert_unchanged(model, values)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_users_hooks_run_and_stay():
    model, seen = net(), []
    model[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model[0].register_forward_hook(lambda *_: seen.append(1))
    batches = data((4, 4))
    nk.recalibrate(model, batches)
    x = 2 * torch.cat(batches)
    torch.testing.assert_close(model[0].running_var, x.var((0, 2, 3)), rtol=1e-6, atol=0)
    assert len(seen) == 2
    assert len(model[0]._forward_hooks) == len(model[0]._forward_pre_hooks) == 1


def test_a_forward_put_on_the_instance_is_used_and_stays():
    model = net()
    own = model[0].forward
    model[0].forward = patched = lambda x: own(x) + 1
    nk.recalibrate(model, data())
    assert model[0].__dict__["forward"] is patched


def test_buffers_that_a_forward_moves_come_back():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    class Replacer(Counter):
        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x

    model = nn.Sequential(Counter(), Replacer(), nn.BatchNorm2d(3))
    kept = model[1].calls
    nk.recalibrate(model, data())
    assert model[0].calls == model[1].calls == 0
    assert model[1].calls is kept


def test_random_states_of_python_and_numpy_come_back():
    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random() * numpy.random.rand()

    before = random.getstate(), numpy.random.get_state()[1].tobytes()
    nk.recalibrate(nn.Sequential(Draws(), nn.BatchNorm2d(3)), data())
    assert (random.getstate(), numpy.random.get_state()[1].tobytes()) == before


def test_parameters_attributes_and_gradients_that_a_forward_changes_come_back():
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.calls, self.seen = nn.Parameter(torch.ones(1)), 0, [1]
            self.weight.grad = torch.ones(1)

        def forward(self, x: Tensor) -> Tensor:
            self.weight.data.clamp_(max=0.5)
            self.weight.grad = None
            self.weight.requires_grad_(False)
            self.calls, self.last = self.calls + 1, x
            self.seen.append(2)
            return x * self.weight

    model = nn.Sequential(Changes(), nn.BatchNorm2d(3))
    first, weight, grad, seen = model[0], model[0].weight, model[0].weight.grad, model[0].seen
    nk.recalibrate(model, data())
    assert first.weight is weight
    assert (weight.item(), weight.requires_grad, weight.grad is grad, first.calls) == (1.0, True, True, 0)
    assert first.seen is seen
    assert seen == [1]
    assert not hasattr(first, "last")


def test_a_graph_that_waits_for_its_backward_is_not_disturbed():
    model, (x,) = net().eval(), data((4,))
    y = model[1](model[0](x))  # saves the running statistics, which a pass moves and gives back
    nk.recalibrate(model, data(), only="2")
    y.sum().backward()
    assert model[0].weight.grad is not None


def test_a_forward_that_switches_to_train_mode_does_not_spoil_the_statistics():
    right, model = net(), net()
    nk.recalibrate(right, data())
    model[3].p = 0.0
    nk.recalibrate(model, data(), forward=lambda model, batch: model.train()(batch))
    assert_unchanged(model, state(right))


@pytest.mark.parametrize("norm", ["torch", "foreign"])
def test_the_result_is_free_to_be_copied(norm):
    model = net(BATCH_NORMS[norm])
    nk.recalibrate(model, data())
    twin = copy.deepcopy(model).eval()
    (x,) = data((4,))
    assert torch.equal(twin(x), model.eval()(x))


def test_inside_deferred_statistics_the_exact_ones_are_written_and_nothing_is_deferred():
    model, right = net(nk.BatchNorm2d), net(nk.BatchNorm2d)
    nk.recalibrate(right, data())
    with nk.deferred_statistics(model):
        nk.recalibrate(model, data())
    assert_unchanged(model, state(right))


def test_it_refuses_to_run_inside_adapt():
    model = net()
    with nk.adapt(model), pytest.raises(RuntimeError, match="already at work on this model: leave that block first"):
        nk.recalibrate(model, data())
