"""Tent, a mode of adapt: each call steps down the entropy of its logits, by the norms' parameters alone."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from normkit.statistics.tent import entropy
from tests.cases import EPS, generator
from tests.statistics.test_preserved import everything

RATE = 0.1
NORMS = {"torch": nn.BatchNorm2d, "normkit": nk.BatchNorm2d}
each_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


class Net(nn.Module):
    def __init__(self, norm: Any, affine: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm1 = nn.Conv2d(3, 6, 3), norm(6, EPS, affine=affine)
        self.second, self.norm2 = nn.Conv2d(6, 6, 3), norm(6, EPS, affine=affine)
        self.head = nn.Linear(6, 4)
        self.double().eval()
        with torch.no_grad():
            for norms in (self.norm1, self.norm2):
                for p in norms.parameters():
                    p.add_(0.2 * torch.randn(p.shape, generator=generator(1)).double())

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        return self.head(self.norm2(self.second(x)).relu().mean((2, 3)))


def batches(count: int = 3) -> list[Tensor]:
    g = generator(2)
    return [2 * torch.randn(8, 3, 9, 9, generator=g, dtype=torch.float64) + 1 for _ in range(count)]


def descent(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, RATE)


def formula(net: Net, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """The logits under the batch's statistics, gradients through these too."""
    w1, b1, w2, b2 = parameters
    x = F.batch_norm(net.first(x), None, None, w1, b1, True, 0.0, EPS).relu()
    x = F.batch_norm(net.second(x), None, None, w2, b2, True, 0.0, EPS).relu()
    return net.head(x.mean((2, 3)))


def of_norms(net: Net) -> list[nn.Parameter]:
    return [*net.norm1.parameters(), *net.norm2.parameters()]


def whole(net: Net) -> list[Any]:
    """All that a block could leave behind."""
    state = [t.detach().clone().tolist() for t in (*net.parameters(), *net.buffers())]
    return [*everything(net), *state, [p.requires_grad for p in net.parameters()]]


@each_norm
def test_each_call_is_a_step_of_the_reference(norm: Any) -> None:
    net = Net(norm)
    parameters: list[Tensor] = [p.detach().clone() for p in of_norms(net)]
    with nk.adapt(net, 0, tent=descent) as adaptation:
        for x in batches():
            logits, parameters = reference.tent(lambda leaves, x=x: formula(net, x, leaves), parameters, RATE)
            torch.testing.assert_close(adaptation(x), logits, rtol=1e-9, atol=1e-9)
            for found, expected in zip(of_norms(net), parameters, strict=True):
                torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-9)


@each_norm
def test_entropy_falls_and_the_model_is_given_back(norm: Any) -> None:
    net = Net(norm).train()
    for p in net.parameters():
        p.requires_grad_(False)
    net.norm1.weight.grad = torch.ones(6).double()
    before, (x,) = whole(net), batches(1)
    with nk.adapt(net, 0, tent=lambda parameters: torch.optim.Adam(parameters, 0.05)) as adaptation:
        with torch.no_grad():
            entropies = [float(entropy(adaptation(x))) for _ in range(8)]
        assert entropies[-1] < 0.9 * entropies[0]
        assert not torch.equal(net.norm2.weight, Net(norm).norm2.weight)
        adaptation.reset()
        assert float(entropy(adaptation(x))) == pytest.approx(entropies[0], rel=1e-9)
    assert whole(net) == before
    assert torch.equal(net.norm1.weight.grad, torch.ones(6).double())


def test_an_error_gives_the_model_back() -> None:
    net = Net(nn.BatchNorm2d)
    before, (x,) = whole(net), batches(1)
    with suppress(ZeroDivisionError), nk.adapt(net, 0, tent=descent) as adaptation:
        adaptation(x)
        raise ZeroDivisionError
    assert whole(net) == before

    def failing(parameters: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), nk.adapt(net, 0, tent=failing):
        pass
    assert whole(net) == before
    with nk.adapt(net, 0, tent=descent):
        pass  # it may be entered again


def test_a_batch_that_is_not_finite_moves_nothing() -> None:
    net = Net(nn.BatchNorm2d)
    (x,) = batches(1)
    with nk.adapt(net, 0, tent=descent) as adaptation:
        adaptation(torch.full_like(x, math.nan))
        assert all(p.isfinite().all() for p in net.parameters())
        before = [p.detach().clone() for p in of_norms(net)]
        adaptation(x)
        assert not torch.equal(of_norms(net)[0], before[0])


def test_only_the_selected_layers_move() -> None:
    net = Net(nn.BatchNorm2d)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    (x,) = batches(1)
    with nk.adapt(net, 0, tent=descent, only="norm2") as adaptation:
        adaptation(x)
        moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"norm2.weight", "norm2.bias"}


def test_the_entropy_is_the_references() -> None:
    logits = torch.randn(5, 4, 3, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(entropy(logits), reference.entropy(logits))
    assert float(entropy(torch.tensor([[1e4, 0.0]]))) == 0.0
    assert float(entropy(torch.zeros(1, 8))) == pytest.approx(math.log(8))


@pytest.mark.parametrize(
    ("options", "text"),
    [({"prior": 16}, "expected prior=0 and running=False, got 16"), ({"prior": 0, "running": True}, "running=False")],
)
def test_another_mixture_is_refused(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        nk.adapt(Net(nn.BatchNorm2d), tent=descent, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tent": 3}, "tent must be a function .* got a int"),
        ({"tent": lambda parameters: None}, "tent must make an optimizer .* got a NoneType"),
        ({"prior": "16"}, "prior must be a number of samples, got a str"),
        ({"prior": True}, "prior must be a number of samples, got a bool"),
    ],
)
def test_what_is_no_optimizer_or_number_is_told_before_a_batch_is_seen(options: Any, text: str) -> None:
    model = Net(nn.BatchNorm2d)
    before = whole(model)
    with pytest.raises(TypeError, match=text), nk.adapt(model, **{"prior": 0, **options}):
        raise AssertionError("the block was entered")
    assert whole(model) == before


def test_what_cannot_be_moved_is_refused() -> None:
    with pytest.raises(ValueError, match="neither weight nor bias"):
        nk.adapt(Net(nn.BatchNorm2d, affine=False), 0, tent=descent)
    model = nn.Sequential(Net(nn.BatchNorm2d), nn.Flatten(0))
    with (
        pytest.raises(TypeError, match=r"logits \(N, classes, \*\), got a tensor \(32,\)"),
        nk.adapt(model, 0, tent=descent) as adaptation,
    ):
        adaptation(batches(1)[0])


def test_parameters_made_in_inference_mode_are_refused_before_anything_is_touched() -> None:
    with torch.inference_mode():
        net = Net(nn.BatchNorm2d)
    with pytest.raises(RuntimeError, match="made in inference mode"):
        nk.adapt(net, prior=0, tent=descent)


def test_what_cannot_be_given_back_keeps_nothing_else() -> None:
    net = Net(nn.BatchNorm2d)
    net.norm1.train()
    adaptation = nk.adapt(net, prior=0, tent=descent)
    with pytest.raises(RuntimeError, match="must match the size"), adaptation:
        net.norm2.weight.data = torch.ones(7)
    assert (net.norm1.training, net.norm2.training) == (True, False)
    assert not any("forward" in vars(module) for module in net.modules())


@pytest.mark.parametrize("how", ["under no_grad", "detached"])
def test_an_output_without_gradient_is_told(how: str) -> None:
    net = Net(nn.BatchNorm2d)
    own = net.forward
    net.forward = torch.no_grad()(own) if how == "under no_grad" else lambda x: own(x).detach()
    adaptation = nk.adapt(net, prior=0, tent=descent)
    with pytest.raises(RuntimeError, match="needs the gradients of the model's output"), adaptation:
        adaptation(batches(1)[0])


def test_an_optimizer_that_needs_a_closure_is_told_before_a_batch_is_seen() -> None:
    adaptation = nk.adapt(Net(nn.BatchNorm2d), prior=0, tent=torch.optim.LBFGS)
    with pytest.raises(TypeError, match="takes no closure, for a batch is run once, got a LBFGS"), adaptation:
        pass
