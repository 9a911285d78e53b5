"""A layer that somebody holds outside of the module tree is kept: a new one would not be called, the old one no longer
follow the model's mode and dtype."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk

from .models import close, randomized

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Holding(nn.Module):
    """hold: norm -> what is kept of it in an attribute. call: the norm's output by what was kept."""

    def __init__(self, hold: Callable[[nn.Module], object], call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, eps=3e-4), nn.BatchNorm2d(3, eps=3e-4)
        self.held, self.call = hold(self.bn), call

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(F.relu(self.call(self.held, self.conv(x)))))


HELD: dict[str, tuple[Callable[[nn.Module], object], Callable[[Any, Tensor], Tensor]]] = {
    "list": (lambda bn: [bn], lambda held, x: held[0](x)),
    "dict": (lambda bn: {"a": ({"b": bn},)}, lambda held, x: held["a"][0]["b"](x)),
    "tuple": (lambda bn: (1, bn), lambda held, x: held[1](x)),
    "bound method": (lambda bn: bn.forward, lambda held, x: held(x)),
    "partial": (lambda bn: partial(lambda norm, x: norm(x), bn), lambda held, x: held(x)),
}


class Holder:
    def __init__(self, norm: nn.Module) -> None:
        self.norms = {"a": norm}


HELD["object"] = (Holder, lambda held, x: held.norms["a"](x))
OPERATIONS: dict[str, Callable[[nn.Module, bool], nn.Module]] = {
    "accelerate": lambda m, inplace: nk.accelerate(m, X, inplace=inplace),
    "convert": lambda m, inplace: nk.convert(m, "group", inplace=inplace),
    "freeze": lambda m, inplace: nk.freeze(m, inplace=inplace),
    "fold": lambda m, inplace: nk.fold(m.eval(), X, inplace=inplace),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("how", HELD)
def test_it_is_kept_and_goes_on_following_the_model(how: str, operation: str, inplace: bool) -> None:
    model = randomized(Holding(*HELD[how]))
    expected = copy.deepcopy(model).eval()(X)
    result = OPERATIONS[operation](model, inplace)
    if operation != "convert":
        close([copy.deepcopy(result).eval()(X)], [expected], 1e-5)
    entry = nk.changes(result)["bn"]
    assert entry.action == "kept"
    assert entry.reason == "it is held outside of the module tree too (held of the model), where no new layer gets"
    if operation in ("accelerate", "convert", "freeze"):
        assert nk.changes(result)["bn2"].action == "replaced"
    before = result.bn.running_mean.clone()
    result.double().train()(X.double())
    assert result.bn.running_mean.dtype == torch.float64
    assert not torch.equal(result.bn.running_mean, before)  # its mode and dtype are the model's


class Closed(nn.Module):
    """A function refers to the module that made it, and a copy's function to the original."""

    def __init__(self, partly: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3, eps=3e-4)
        norm: Callable[[Tensor], Tensor] = lambda x: self.bn(x)  # noqa: E731  # as users write it
        self.norm = partial(norm) if partly else [norm]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x) if isinstance(self.norm, partial) else self.norm[0](x))


@pytest.mark.parametrize("partly", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_function_that_refers_to_the_model_cannot_be_copied(operation: str, partly: bool) -> None:
    model = Closed(partly).train(operation != "fold")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"a copy's norm holds modules of the original .*; pass inplace=True"):
        OPERATIONS[operation](model, False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    if operation != "fold":
        assert nk.changes(OPERATIONS[operation](model, True))["bn"].action == "replaced"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_hook_that_refers_to_the_model_would_run_on_the_original(operation: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train(operation != "fold")
    model[0].register_forward_hook(lambda module, inputs, output: setattr(model, "last", output))
    with pytest.raises(RuntimeError, match=r"a copy's 0\._forward_hooks holds modules of the original"):
        OPERATIONS[operation](model, False)
    assert not hasattr(model, "last")


def test_hooks_that_are_copied_with_the_model_are_welcome() -> None:
    class Hears(nn.Sequential):
        def listen(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.heard = output.shape

    model = Hears(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    model[0].register_forward_hook(model.listen)
    result = nk.accelerate(model, X)
    result(X)
    assert result.heard == (4, 3, 9, 9)
    assert not hasattr(model, "heard")


def test_a_forward_that_was_wrapped_on_the_instance_is_not_the_originals() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    own = model.forward
    model.forward = lambda x: own(x) * 2  # type: ignore[method-assign]  # as users do
    with pytest.raises(RuntimeError, match="a copy's forward holds modules of the original"):
        nk.accelerate(model, X)
    result = nk.accelerate(model, X, inplace=True)
    plain = nn.Sequential(*model)
    close([result.eval()(X)], [plain.eval()(X) * 2], 1e-5)
