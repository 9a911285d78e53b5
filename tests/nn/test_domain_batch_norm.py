"""DomainBatchNorm: each domain as a batch norm alone, however it is named; states, surgery, statistics, ranks."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing import assert_close
from torch.testing._internal.common_distributed import spawn_threads_and_init_comms  # two ranks in one process
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit import reference

DOMAIN = torch.tensor([2, 0, 0, 2, 2, 0, 2])
INPUTS = {1: (7, 3, 4), 2: (7, 3, 4, 5), 3: (7, 3, 2, 3, 2)}
KINDS: dict[int, Any] = {1: nk.DomainBatchNorm1d, 2: nk.DomainBatchNorm2d, 3: nk.DomainBatchNorm3d}


def layer(shared: bool = False, kind: Any = nk.DomainBatchNorm2d, **options: Any) -> Any:
    torch.manual_seed(1)
    made = kind(3, domains=3, shared_affine=shared, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def input(rank: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(INPUTS[rank], generator=torch.Generator().manual_seed(seed)) * 2 + 1


def parameters(made: Any, name: str) -> Tensor:
    """(K, C), or (C,) where all domains share it."""
    values = [getattr(norm, name) for norm in made.norms]
    return values[0] if made.shared_affine else torch.stack(values)


@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize("rank", INPUTS)
def test_a_batch_of_several_domains_is_the_references(rank: int, shared: bool) -> None:
    made, x = layer(shared, KINDS[rank], eps=3e-3).double(), input(rank).double().requires_grad_()
    dy = input(rank, 1).double()
    w, b = (parameters(made, name).detach() for name in ("weight", "bias"))
    y = made(x, DOMAIN)
    expected, mean, var = reference.domain_batch_norm(x.detach(), DOMAIN, 3, w, b, 3e-3)
    assert_close(y, expected)
    dx, dweight, dbias = reference.domain_batch_norm_backward(dy, x.detach(), DOMAIN, 3, w, 3e-3)
    y.backward(dy)
    assert_close(x.grad, dx)
    of = [0] if shared else [0, 2]
    for number in of:
        norm = made.norms[number]
        assert_close(norm.weight.grad, dweight if shared else dweight[number])
        assert_close(norm.bias.grad, dbias if shared else dbias[number])
    for number in (0, 2):
        norm = made.norms[number]
        m = int((number == DOMAIN).sum()) * x[0, 0].numel()
        assert_close(norm.running_mean, 0.1 * mean[number])
        assert_close(norm.running_var, 0.9 + 0.1 * var[number] * m / (m - 1))
        assert norm.num_batches_tracked == 1
    assert made.norms[1].num_batches_tracked == 0
    assert not made.norms[1].running_mean.any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_number_tensor_and_block_say_the_same(layout: torch.memory_format) -> None:
    x, norms = input().contiguous(memory_format=layout), [layer() for _ in range(4)]
    one = norms[0].norms[1](x)
    found = [norms[1](x, 1), norms[2](x, torch.full((7,), 1))]
    with nk.domain(0), nk.domain(1):
        found.append(norms[3](x))
    for y, norm in zip(found, norms[1:], strict=True):
        assert torch.equal(y, one)
        assert y.stride() == x.stride()
        for key, value in norm.state_dict().items():
            assert torch.equal(value, norms[0].state_dict()[key]), key
    with nk.domain(DOMAIN):
        y = norms[0](x)
        assert y.stride() == x.stride()
        assert_close(norms[1].eval()(x, 2), norms[1](x, torch.full((7,), 2)))
        assert torch.equal(layer()(x), layer()(x, DOMAIN))


def test_blocks_of_several_threads_end_in_any_order() -> None:
    first, second = nk.domain(0), nk.domain(DOMAIN)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="no domain was given"):
        layer()(input())


def test_a_call_goes_before_a_block_and_a_block_ends() -> None:
    made, x = layer().eval(), input()
    made.norms[0].running_mean.fill_(5)
    with nk.domain(1):
        assert torch.equal(made(x, 0), made.norms[0](x))
    with pytest.raises(ValueError, match="boom"), nk.domain(1):
        raise ValueError("boom")
    with pytest.raises(RuntimeError, match=r"no domain was given: call DomainBatchNorm2d\(x, domain\)"):
        made(x)


@pytest.mark.parametrize("trains", [True, False], ids=["train", "eval"])
def test_residual_mask_activation_and_modulation_go_along(trains: bool) -> None:
    x, r = input(), input(seed=2)
    mask = torch.rand(7, 4, 5, generator=torch.Generator().manual_seed(3)) < 0.8
    scale, shift = torch.randn(7, 3), torch.randn(1, 3, 1, 1)
    made = layer(activation="relu").train(trains)
    alone = copy.deepcopy(made)
    y = made(x, DOMAIN, residual=r, mask=mask, modulate=(scale, shift))
    for number in (0, 2):
        here = number == DOMAIN
        expected = alone.norms[number](
            x[here], residual=r[here], mask=mask[here], activation="relu", modulate=(scale[here], shift)
        )
        assert_close(y[here], expected)
    assert_close(made.eval()(x, DOMAIN, activation=nn.Tanh()), layer_of(made, x, torch.tanh))


def layer_of(made: Any, x: Tensor, function: Any) -> Tensor:
    y = torch.empty_like(x)
    for number, norm in enumerate(made.norms):
        y[number == DOMAIN] = function(norm(x[number == DOMAIN]))
    return y


@pytest.mark.parametrize("trains", [True, False], ids=["train", "eval"])
def test_where_numbers_cannot_be_read_each_domain_is_masked(trains: bool) -> None:
    x = input()
    split, masked = layer().train(trains), layer().train(trains)
    compiled = torch.compile(masked, backend="eager", fullgraph=True)
    assert_close(compiled(x, DOMAIN), split(x, DOMAIN))
    for key, value in masked.state_dict().items():
        assert_close(value, split.state_dict()[key], msg=key)
    mask = torch.rand(7, 4, 5, generator=torch.Generator().manual_seed(3)) < 0.8
    given = {"residual": input(seed=2), "mask": mask, "modulate": (torch.full((7, 3), 2.0), None), "activation": "relu"}
    assert_close(compiled(x, DOMAIN, **given), split(x, DOMAIN, **given))
    for key, value in masked.state_dict().items():
        assert_close(value, split.state_dict()[key], msg=key)
    number = torch.compile(layer().train(trains), backend="eager", fullgraph=True)
    assert_close(number(x, 1), layer().train(trains)(x, 1))
    with nk.domain(2):
        assert_close(number(x), layer().train(trains)(x, 2))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"modulate": (torch.ones(3, 5), None)}, "scale of shape (3, 5) does not fit an input of shape (6, 5, 2, 2)"),
        ({"modulate": (None, torch.ones(3, 1, 2, 2))}, "(3, 1, 2, 2) does not fit an input of shape (6, 5, 2, 2)"),
        ({"residual": torch.ones(3, 5, 2, 2)}, "the input's shape (6, 5, 2, 2), got (3, 5, 2, 2)"),
        ({"mask": torch.ones(3, 2, 2, dtype=torch.bool)}, "(6, 5, 2, 2)"),
        ({"modulate": (torch.ones(6, 4), None)}, "scale of shape (6, 4) does not fit an input of shape (6, 5, 2, 2)"),
    ],
    ids=["scale", "shift", "residual", "mask", "channels"],
)
def test_what_fits_the_samples_of_one_domain_does_not_fit_the_batch(given: dict[str, Any], text: str) -> None:
    layer = nk.DomainBatchNorm2d(5, domains=2)
    with pytest.raises(ValueError, match=re.escape(text)):
        layer(torch.randn(6, 5, 2, 2), torch.tensor([0, 1, 0, 1, 0, 1]), **given)


def test_an_empty_batch_passes() -> None:
    made = layer()
    assert made(input()[:0], DOMAIN[:0]).shape == (0, 3, 4, 5)
    assert all(norm.num_batches_tracked == 0 for norm in made.norms)


def test_one_value_of_a_domain_is_an_error_as_in_batch_norm() -> None:
    x, which = torch.randn(3, 3, 1, 1), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer()(x, which)
    assert layer(small_batch="running")(x, which).isfinite().all()


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "beyond": (3, IndexError, "domain must be a number from 0 to 2, got 3"),
    "negative": (torch.tensor([0, 0, 0, -1, 0, 0, 0]), IndexError, "from 0 to 2, got -1"),
    "float": (torch.zeros(7), TypeError, r"domain must be integers, a number for each sample, got torch.float32"),
    "text": ("a", TypeError, r"an integer or a tensor of integers \(N,\), got str"),
    "flag": (True, TypeError, "got bool"),
    "short": (torch.tensor([0, 1]), ValueError, r"domain must have a number for each of 7 samples, got \(2,\)"),
}


@pytest.mark.parametrize(("which", "kind", "text"), WRONG.values(), ids=WRONG)
def test_what_is_no_domain_is_told(which: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        layer()(input(), which)


@pytest.mark.parametrize("domains", [0, 2.0, True])
def test_a_number_of_domains_that_is_none_is_told(domains: Any) -> None:
    with pytest.raises(ValueError, match="domains must be how many domains there are, 1 or more, got"):
        nk.DomainBatchNorm1d(3, domains=domains)


# --- one batch norm
@pytest.mark.parametrize("source", [nn.BatchNorm2d(3, eps=2e-3, momentum=None), nk.BatchNorm2d(3, activation="relu")])
@pytest.mark.parametrize("shared", [False, True], ids=["each", "shared"])
def test_from_one_batch_norm_and_back(source: nn.Module, shared: bool) -> None:
    x = input()
    norm = copy.deepcopy(source)
    norm(x)
    norm.weight.requires_grad_(False)
    made = nk.DomainBatchNorm2d.from_norm(norm.eval(), 3, shared_affine=shared)
    for number in range(3):
        assert torch.equal(made(x, number), nk.BatchNorm2d.forward(made.to_norm(number), x))
        assert_close(made(x, number), norm(x))
    for one in (made.to_norm(2), made.to_norm()):
        assert type(one) is nk.BatchNorm2d
        assert_close(one(x), norm(x))
        assert not one.weight.requires_grad
        assert one.momentum == norm.momentum
    with pytest.raises(TypeError, match=r"expected a BatchNorm1d of torch\.nn or normkit, got"):
        nk.DomainBatchNorm1d.from_norm(norm, 2)


def test_all_domains_as_one_have_the_statistics_of_one_set() -> None:
    made = layer(shared=True, momentum=None)
    parts = [input(seed=seed) + seed for seed in range(4)]
    for part, number in zip(parts, (0, 2, 0, 2), strict=True):
        made(part, number)
    one = made.to_norm()
    means = torch.stack([made.norms[k].running_mean for k in (0, 2)]).double()
    variances = torch.stack([made.norms[k].running_var for k in (0, 2)]).double()
    assert_close(one.running_mean.double(), means.mean(0))
    assert_close(one.running_var.double(), variances.mean(0) + means.var(0, correction=0))
    assert one.num_batches_tracked == 4
    apart = layer()
    with pytest.raises(ValueError, match="the domains differ in weight, which no single batch norm can have"):
        apart.to_norm()


# --- states
def test_a_state_loads_and_so_does_that_of_one_norm() -> None:
    made, other = layer(), layer()
    made(input(), DOMAIN)
    other.load_state_dict(made.state_dict())
    assert_close(other.eval()(input(), DOMAIN), made.eval()(input(), DOMAIN))
    assert set(made.state_dict()) == {f"norms.{k}.{name}" for k in range(3) for name in nn.BatchNorm2d(3).state_dict()}
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    plain(input())
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nk.DomainBatchNorm2d(3, domains=2))
    net.load_state_dict(plain.state_dict())
    with nk.domain(1):
        assert_close(net.eval()(input()), plain.eval()(input()))


def test_shared_parameters_stay_one() -> None:
    made = layer(shared=True)
    assert len(list(made.parameters())) == 2
    with torch.device("meta"):
        late = nk.DomainBatchNorm2d(3, domains=3, shared_affine=True)
    for other in (
        copy.deepcopy(made),
        made.to(torch.float64),
        late.to_empty(device="cpu"),
    ):
        assert len(list(other.parameters())) == 2
    late.load_state_dict(made.state_dict(), assign=True)
    assert len(list(late.parameters())) == 2
    assert_close(late.norms[2].weight, made.norms[0].weight)


def test_shared_parameters_go_through_freezing_and_back() -> None:
    net = nn.Sequential(layer(shared=True))
    frozen = nk.freeze(net).double()
    assert_close(frozen[0](input().double(), 1).float(), net[0].eval()(input(), 1))
    thawed = nk.unfreeze(frozen)
    assert len(list(thawed.parameters())) == 2
    assert_close(thawed[0].float().eval()(input(), 1), net[0].eval()(input(), 1))


def test_statistics_stay_float32_in_half_modules() -> None:
    made = layer().bfloat16()
    assert all(norm.running_var.dtype == torch.float32 for norm in made.norms)
    assert made(input().bfloat16(), DOMAIN).dtype == torch.bfloat16


# --- with the rest of the house
class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 1), nk.DomainBatchNorm2d(3, domains=2), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))))


def test_recalibrate_sets_the_domain_of_the_block_alone() -> None:
    net, batches = Net(), [input(seed=seed) for seed in range(3)]
    with nk.domain(1):
        report = nk.recalibrate(net, batches, progress=False)
    done = {entry.name: entry.action for entry in report.layers}
    assert done == {"norm.norms.0": "left alone", "norm.norms.1": "recalibrated"}
    features = torch.cat([net.conv(batch) for batch in batches])
    assert_close(net.norm.norms[1].running_mean, features.mean((0, 2, 3)))
    assert_close(net.norm.norms[1].running_var, features.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not net.norm.norms[0].running_mean.any()


def test_fold_keeps_the_norms_of_domains() -> None:
    net = Net().eval()
    with nk.domain(0):
        folded = nk.fold(net, input())
    reasons = {change.name: change.reason for change in nk.changes(folded).entries}
    assert "one of several domains" in reasons["norm.norms.0"]
    for number in (0, 1):
        with nk.domain(number):
            assert_close(folded(input()), net(input()))


def test_accelerate_freeze_and_convert_take_each_domains_norm() -> None:
    net = Net()
    with nk.domain(0):
        nk.accelerate(net, input())
    frozen = nk.freeze(net)
    assert {type(norm) for norm in frozen.norm.norms} == {nk.FrozenBatchNorm2d}
    synced = nk.convert(net, "sync")
    assert {type(norm) for norm in synced.norm.norms} == {nk.SyncBatchNorm}
    with nk.domain(1):
        assert_close(frozen.eval()(input()), net.eval()(input()))
        assert_close(synced.eval()(input()), net(input()))
    groups = nk.parameter_groups(net, weight_decay=0.1)
    plain = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert {id(p) for p in net.norm.parameters()} <= plain


def test_deferred_statistics_move_each_domain_once() -> None:
    parts, at_once = layer(), layer()
    x = torch.cat([input(), input(seed=4)])
    with nk.deferred_statistics(parts):
        parts(x[:7], DOMAIN), parts(x[7:], DOMAIN)
    at_once(x, torch.cat([DOMAIN, DOMAIN]))
    for key, value in parts.state_dict().items():
        assert_close(value, at_once.state_dict()[key], msg=key)


def test_a_checkpoint_with_the_domain_inside_updates_once() -> None:
    made, x = layer(), input().requires_grad_()
    checkpoint(made, x, DOMAIN, use_reentrant=False).sum().backward()
    assert made.norms[2].num_batches_tracked == 1
    with nk.domain(1):
        y = checkpoint(made, x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="recomputation of an activation checkpoint runs outside of a block"):
        y.sum().backward()


def test_a_symbolic_trace_and_a_copy_hold_it() -> None:
    net = Net()
    traced = torch.fx.symbolic_trace(net)
    with nk.domain(1):
        assert_close(traced.eval()(input()), net.eval()(input()))


def test_ranks_with_different_domains_synchronise_each() -> None:
    x, results = input(), {}
    split = {0: slice(0, 3), 1: slice(3, 7)}
    made = [nk.convert(layer(), "sync") for _ in split]  # here: threads share the generator of random numbers

    @spawn_threads_and_init_comms(world_size=2)
    def two_ranks(_: None) -> None:
        rank = dist.get_rank()
        own = split[rank]
        results[rank] = made[rank](x[own], DOMAIN[own])
        made[rank](x[own], rank)  # each rank at a domain of its own

    two_ranks(None)
    whole = layer()
    assert_close(torch.cat([results[0], results[1]]), whole(x, DOMAIN))
    for rank, own in split.items():
        whole(x[own], rank)
    for rank in split:
        for key, value in made[rank].state_dict().items():
            assert_close(value, whole.state_dict()[key], msg=key)
