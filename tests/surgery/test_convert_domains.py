"""A whole model to a norm for each domain, and back: `nk.convert(model, "domain", domains=n)`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import normkit as nk
from normkit.doctor.examples import images, small_net
from tests.surgery.foreign import torchvision_model


def target() -> list[Tensor]:
    return [3 + 2 * batch for batch in images()]


@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize("trains", [False, True], ids=["eval", "train"])
def test_every_domain_begins_as_the_model(trains: bool, shared: bool) -> None:
    model = small_net().train(trains)
    many = nk.convert(model, "domain", domains=3, shared_affine=shared)
    assert [type(many[i]).__name__ for i in (1, 4)] == ["DomainBatchNorm2d"] * 2
    assert many[1].norms[0].weight is (many[1].norms[2].weight if shared else many[1].norms[0].weight)
    for number in range(3):
        alone, x = copy.deepcopy(model), images()[0]
        with nk.domain(number):
            assert_close(many(x), alone(x))
        assert_close(many[4].norms[number].running_var, alone[4].running_var)
    assert [(entry.name, entry.action, entry.after) for entry in nk.changes(many)] == [
        ("1", "replaced", "DomainBatchNorm2d"), ("4", "replaced", "DomainBatchNorm2d"),
    ]  # fmt: skip


def test_a_trained_domain_comes_back_as_torchs_layers() -> None:
    model = small_net()
    many = nk.convert(model, "domain", domains=2, shared_affine=True)
    with nk.domain(1):
        nk.recalibrate(many, target(), progress=False)
    for number, data in enumerate((images(), target())):
        one = nk.convert(many, "torch", domain=number)
        assert [type(one[i]) for i in (1, 4)] == [nn.BatchNorm2d] * 2
        assert {name for name, _ in one.named_parameters()} == {name for name, _ in model.named_parameters()}
        with nk.domain(number):
            assert_close(one(data[0]), many(data[0]))
        assert nk.diagnose(one, data).healthy
    assert_close(nk.convert(many, "torch", domain=0)(images()[0]), model(images()[0]))
    with pytest.raises(AssertionError):
        assert_close(nk.convert(many, "torch", domain=1)[1].running_mean, model[1].running_mean)


def test_all_domains_as_one_set() -> None:
    many = nk.convert(small_net(), "domain", domains=2, shared_affine=True)
    with nk.domain(1):
        nk.recalibrate(many, target(), progress=False)
    one = nk.convert(many, "batch", domain="all")
    assert type(one[4]) is nk.BatchNorm2d
    assert_close(one[4].running_var, many[4].to_norm().running_var)
    with torch.no_grad():
        apart = nk.convert(small_net(), "domain", domains=2)
        apart[1].norms[1].weight.mul_(2)
    kept = nk.convert(apart, "batch", domain="all")
    assert type(kept[1]) is nk.DomainBatchNorm2d
    assert "the domains differ in weight" in nk.changes(kept)["1"].reason
    assert type(kept[4]) is nk.BatchNorm2d


def test_parameters_hooks_and_names_stay() -> None:
    model, seen = small_net(), []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    model[1].weight.requires_grad_(False)
    weights = model[1].weight, model[4].bias
    many = nk.convert(model, "domain", domains=2, inplace=True)
    assert many is model
    assert many[1].norms[0].weight is weights[0]
    assert many[4].norms[0].bias is weights[1]
    assert [norm.weight.requires_grad for norm in many[1].norms] == [False, False]
    many.load_state_dict(small_net().state_dict())  # a checkpoint of the plain model
    with nk.domain(1):
        many(images()[0])
    assert seen == [1]
    back = nk.convert(many, "torch", domain=0, inplace=True)
    assert back[1].weight is weights[0]
    back(images()[0])
    assert seen == [1, 1]


def test_only_some_and_those_that_are_domains_already() -> None:
    some = nk.convert(small_net(), "domain", domains=2, only="1")
    again = nk.convert(some, "domain", domains=3)
    assert (len(again[1].norms), len(again[4].norms)) == (2, 3)
    assert nk.changes(again)["1.norms.0"].reason == "it is the norm of one of several domains already"
    back = nk.convert(again, "torch", domain=1, skip="4")
    assert (type(back[1]), type(back[4])) == (nn.BatchNorm2d, nk.DomainBatchNorm2d)


KINDS: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "rows": (nn.BatchNorm1d(6), (8, 6), ""),
    "volumes": (nn.BatchNorm3d(6, momentum=None), (4, 6, 2, 3, 3), ""),
    "no affine": (nn.BatchNorm2d(6, affine=False), (4, 6, 3, 3), ""),
    "activation": (nk.BatchNorm2d(6, activation="relu"), (4, 6, 3, 3), ""),
    "ghost": (nk.GhostBatchNorm2d(6), (4, 6, 3, 3), ""),
    "frozen": (nk.FrozenBatchNorm2d(6), (4, 6, 3, 3), ""),
    "instance": (nn.InstanceNorm2d(6), (4, 6, 3, 3), "running statistics start afresh"),
}


@pytest.mark.parametrize(("norm", "shape", "remark"), KINDS.values(), ids=KINDS)
def test_norms_of_every_kind(norm: Any, shape: tuple[int, ...], remark: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(norm).eval()
    many = nk.convert(model, "domain", domains=2)
    assert remark in nk.changes(many)["0"].reason
    with nk.domain(1):
        y = many(x)
    if not remark:
        assert_close(y, model(x))
    assert_close(nk.convert(many, "batch", domain=1)(x), y)


def test_a_synchronised_norm_says_what_is_lost() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    many = nk.convert(model, "domain", domains=2, example_inputs=images()[0])
    assert "not synchronised" in nk.changes(many)["1"].reason
    assert type(nk.convert(many, "sync")[1].norms[1]) is nk.SyncBatchNorm


def test_a_model_of_others() -> None:
    model = torchvision_model("resnet18").eval()
    many = nk.convert(model, "domain", domains=2)
    x = torch.randn(1, 3, 32, 32)
    with nk.domain(1):
        assert_close(many(x), model(x))
    assert_close(nk.convert(many, "torch", domain=1)(x), model(x))


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no number": ({"target": "domain"}, ValueError, "needs domains, how many there are, 1 or more; got None"),
    "no domain": ({"target": "domain", "domains": 0}, ValueError, "1 or more; got 0"),
    "another target": ({"target": "group", "domains": 2}, ValueError, "go with target 'domain', got target 'group'"),
    "both": ({"target": "domain", "domains": 2, "domain": 0}, ValueError, "does not go with target 'domain'"),
    "a flag": ({"target": "torch", "domain": True}, ValueError, "the number of a domain or 'all', got True"),
    "none there": ({"target": "torch", "domain": 0}, ValueError, "needs a model with a domain batch norm, got Sequent"),
}


@pytest.mark.parametrize(("given", "error", "text"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        nk.convert(small_net(), **given)


def test_a_domain_that_is_not_there_leaves_the_model_as_it_was() -> None:
    many = nk.convert(small_net(), "domain", domains=2)
    before = list(many.named_modules())
    with pytest.raises(IndexError, match="from 0 to 1, got 2"):
        nk.convert(many, "torch", domain=2, inplace=True)
    assert list(many.named_modules()) == before
