"""An addition in front of a norm: `accelerate` makes one call of both, and what it cannot take stays as it was."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.kernels import native

from . import foreign_norms as foreign

D = 24
FUSED = "fused with the addition in front of it"
NORMS: dict[str, Any] = {
    "LayerNorm": lambda: nn.LayerNorm(D),
    "RMSNorm": lambda: nn.RMSNorm(D, 1e-6),
    "CastThenWeight": lambda: foreign.CastThenWeight(D),
    "WeightThenCast": lambda: foreign.WeightThenCast(D, 1e-5),
    "OnePlus": lambda: foreign.OnePlus(D),
    "RoundedOnePlus": lambda: foreign.RoundedOnePlus(D),
    "CentredWithBias": lambda: foreign.CentredWithBias(D),
}
each_norm = pytest.mark.parametrize("norm", NORMS)


def stirred(model: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    return model


class Block(nn.Module):
    """h = h + f(norm(h)), twice."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm1, self.mix, self.norm2, self.mlp = NORMS[norm](), nn.Linear(D, D), NORMS[norm](), nn.Linear(D, D)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        residual = x
        x = self.mix(self.norm1(x))
        if scale is not None:
            x = x * scale
        x = residual + x
        return x + self.mlp(self.norm2(x))


def model_of(norm: str) -> nn.Module:
    torch.manual_seed(0)
    return stirred(nn.Sequential(nn.Linear(D, D), Block(norm), Block(norm)))


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 9, D, generator=torch.Generator().manual_seed(3)).to(dtype)


def step(model: Any, x: Tensor, **options: Any) -> list[Tensor]:
    """Output and gradients."""
    leaf = x.clone().requires_grad_()
    y = model(leaf, **options)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [leaf, *model.parameters()], slope)]


def added_nodes(y: Tensor) -> int:
    """How many nodes of its graph are an addition and a norm in one."""
    seen, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return sum(type(node).__name__ == "AddedBackward" for node in seen)


def assert_step_equal(model: Any, fast: Any, x: Tensor, tolerance: float = 1e-5, **options: Any) -> None:
    for ours, theirs in zip(step(fast, x, **options), step(model, x, **options), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@each_norm
def test_the_pair_of_a_pre_norm_block_is_one_call(norm: str) -> None:
    model = model_of(norm)
    fast = nk.accelerate(model, rows())
    record = nk.changes(fast)
    for name in ("1.norm2", "2.norm2"):
        assert f"{FUSED}; the forward of {name[0]} (Block) was rewritten" in record[name].reason
    for name in ("1.norm1", "2.norm1"):
        assert record[name].action == "replaced"
        assert FUSED not in record[name].reason
    assert list(fast.state_dict()) == list(model.state_dict())
    assert_step_equal(model, fast, rows())
    if native.available():
        assert added_nodes(fast(rows())) == 2


def test_what_stands_in_front_of_the_others_is_said() -> None:
    record = nk.changes(nk.accelerate(model_of("LayerNorm"), rows()))
    assert "in front of it is 0, and no addition" in record["1.norm1"].reason
    assert "the addition in front of it is in the forward of another module" in record["2.norm1"].reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_norm
def test_in_half_precision_the_pair_gives_what_the_norm_alone_gives(norm: str, dtype: torch.dtype) -> None:
    """Beside the same model whose blocks add for themselves: every bit."""
    model = model_of(norm).to(dtype)
    fast = nk.accelerate(model, rows(dtype))
    assert FUSED in nk.changes(fast)["1.norm2"].reason
    alone = copy.deepcopy(fast)
    for block in (alone[1], alone[2]):
        del block.__dict__["forward"]
    for ours, theirs in zip(step(fast, rows(dtype)), step(alone, rows(dtype)), strict=True):
        assert torch.equal(ours, theirs)


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x) + x)


class InPlace(PostNorm):
    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(x)
        h += x
        return self.norm(h) * h


@pytest.mark.parametrize("block", [PostNorm, InPlace])
def test_a_sum_that_nobody_else_reads_and_one_made_in_place(block: Any) -> None:
    model = stirred(nn.Sequential(block()))
    fast = nk.accelerate(model, rows())
    assert FUSED in nk.changes(fast)["0.norm"].reason
    assert_step_equal(model, fast, rows())


class Broadcast(PostNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x) + x[:1])


class Number(PostNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x) + 1.0)


class Scaled(PostNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.add(self.mix(x), x, alpha=2))


class Twice(PostNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x) + x) + self.norm(x + 1)


class Product(PostNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x) * x)


KEPT = {
    Broadcast: "an addition of other things than two tensors of one shape and dtype",
    Number: "an addition of other things than two tensors of one shape and dtype",
    Scaled: "the trace has another addition than the run",
    Twice: "its calls are given different things",
    Product: "in front of it is mul, and no addition",
}


@pytest.mark.parametrize("block", KEPT, ids=[kind.__name__ for kind in KEPT])
def test_what_is_no_such_pair_is_replaced_as_before(block: Any) -> None:
    model = stirred(nn.Sequential(block()))
    fast = nk.accelerate(model, rows())
    entry = nk.changes(fast)["0.norm"]
    assert entry.action == "replaced"
    assert KEPT[block] in entry.reason
    assert_step_equal(model, fast, rows())


def test_other_arguments_than_those_of_the_example_run_the_class() -> None:
    model = model_of("RMSNorm")[1]
    fast = nk.accelerate(model, rows())
    scale = torch.rand(D)
    assert torch.allclose(fast(rows(), scale), model(rows(), scale), atol=1e-5)
    assert added_nodes(fast(rows().requires_grad_(), scale)) == 0


def test_a_hook_that_comes_later_sees_the_call() -> None:
    fast = nk.accelerate(model_of("CastThenWeight"), rows())
    seen: list[Tensor] = []
    expected = fast(rows())
    fast[1].norm2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.testing.assert_close(fast(rows()), expected, rtol=1e-6, atol=1e-6)
    assert len(seen) == 1


def test_a_norm_that_is_replaced_later_is_called() -> None:
    fast = nk.accelerate(model_of("LayerNorm"), rows())
    fast[1].norm2 = nn.Identity()
    plain = model_of("LayerNorm")
    plain[1].norm2 = nn.Identity()
    torch.testing.assert_close(fast(rows()), plain(rows()), rtol=1e-5, atol=1e-5)


def test_copies_files_and_the_way_back() -> None:
    model = model_of("CastThenWeight")
    fast = nk.accelerate(model, rows())
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    for again in (copy.deepcopy(fast), torch.load(buffer, weights_only=False)):
        assert_step_equal(model, again, rows())
    back = nk.convert(fast, "torch")
    assert not any(
        "forward" in module.__dict__ for module in back.modules() if isinstance(module, foreign.CastThenWeight)
    )
    assert_step_equal(model, back, rows())


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # of torch's RMS norm
@each_norm
def test_under_autocast_and_checkpoints(norm: str) -> None:
    model = model_of(norm)
    fast = nk.accelerate(model, rows())

    def run(one: nn.Module) -> list[Tensor]:
        x = rows().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = checkpoint(one, x, use_reentrant=False)
        return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *one.parameters()])]

    for ours, theirs in zip(run(fast), run(model), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()))


@pytest.mark.filterwarnings("ignore")  # Dynamo warns about itself
@pytest.mark.parametrize("norm", ["LayerNorm", "CastThenWeight"])
def test_compiled_without_a_break(norm: str) -> None:
    torch._dynamo.reset()
    model = model_of(norm)
    fast = nk.accelerate(model, rows())
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    leaf = rows().requires_grad_()
    y = compiled(leaf)
    torch.testing.assert_close(y, model(rows()), rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(y.square().sum(), [leaf, *fast.parameters()])
    other = rows().requires_grad_()
    expected = torch.autograd.grad(model(other).square().sum(), [other, *model.parameters()])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    torch._dynamo.reset()


def test_recomputed_outputs() -> None:
    model = model_of("LayerNorm").train()
    fast = nk.accelerate(model, rows(), recompute=True)
    assert_step_equal(model, fast.train(), rows())
