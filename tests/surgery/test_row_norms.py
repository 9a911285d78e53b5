"""RMS and layer norms that are classes of their own: what they are taken for, and that `accelerate` changes nothing."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit.model.row_norm import AFTER, BEFORE, RowNorm
from normkit.model.row_probe import row_norm_of
from normkit.surgery.row_norms import installed

from . import foreign_norms as foreign

HALF = (torch.bfloat16, torch.float16)
# what is made; kind, eps, is the factor 1 + weight, gate, axis, where the weight multiplies in half precision
NORMS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "CastThenWeight": (lambda: foreign.CastThenWeight(48), ("rms", 1e-6, False, None, -1, AFTER)),
    "WeightThenCast": (lambda: foreign.WeightThenCast(48, 1e-5), ("rms", 1e-5, False, None, -1, BEFORE)),
    "OnePlus": (lambda: foreign.OnePlus(48), ("rms", 1e-6, True, None, -1, BEFORE)),
    "NoWeight": (foreign.NoWeight, ("rms", 1e-5, False, None, -1, BEFORE)),
    "FixedWidth": (lambda: foreign.FixedWidth(48), ("layer", 1e-5, False, None, -1, BEFORE)),
    "GateFirst": (lambda: foreign.GateFirst(48), ("rms", 1e-6, False, ("before", "silu"), -1, AFTER)),
    "GroupedGateFirst": (
        lambda: foreign.GroupedGateFirst(48, 16),
        ("rms", 1e-6, False, ("before", "silu"), -1, AFTER),
    ),
    "GroupedWeightThenCast": (lambda: foreign.GroupedWeightThenCast(48, 4), ("rms", 1e-6, False, None, -1, BEFORE)),
    "GateLast": (lambda: foreign.GateLast(48), ("rms", 1e-6, False, ("after", "silu"), -1, AFTER)),
    "CentredWithBias": (lambda: foreign.CentredWithBias(48), ("layer", 1e-12, False, None, -1, AFTER)),
    "OverChannels": (lambda: foreign.OverChannels(48), ("layer", 1e-6, False, None, 1, None)),
}
norms = pytest.mark.parametrize("name", NORMS)


def stirred(module: nn.Module) -> nn.Module:
    """Parameters away from 1 and 0."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    return module


def inputs(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """(N, L, D) or (N, D, H, W), and a gate."""
    random = torch.Generator().manual_seed(3)
    shape = (4, 48, 8, 16) if name == "OverChannels" else (4, 128, 48)
    count = 2 if "Gate" in name else 1
    return [torch.randn(shape, generator=random).to(dtype).requires_grad_() for _ in range(count)]


class Holder(nn.Module):
    """A model of one norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.norm(*tensors)


def holder(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return Holder(stirred(NORMS[name][0]())).to(dtype)


def both(model: nn.Module, fast: nn.Module, given: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of inputs and parameters, of each."""
    found = []
    for one in (model, fast):
        y = one(*given)
        slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(y.dtype)
        found.append([y, *torch.autograd.grad(y, [*given, *one.parameters()], slope)])
    return found[0], found[1]


@norms
def test_what_it_computes_is_found(name: str) -> None:
    make, (kind, eps, offset, gate, axis, cast) = NORMS[name]
    row = row_norm_of(make())
    assert isinstance(row, RowNorm), row
    assert (row.kind, row.eps, row.unit_offset, row.gate) == (kind, eps, offset, gate)
    assert set(row.axes.values()) == {axis}
    assert row.groups == {"GroupedGateFirst": 3, "GroupedWeightThenCast": 4}.get(name, 1)
    parameters = [key for key, _ in make().named_parameters()]
    assert [key for key in (row.weight, row.bias) if key] == parameters
    for dtype in HALF:
        for weight in (dtype, torch.float32) if parameters else (None,):
            assert row.casts.get((dtype, weight)) == cast


@norms
def test_outputs_and_gradients_are_the_same_in_float32(name: str) -> None:
    model, given = holder(name), inputs(name)
    fast = nk.accelerate(model, tuple(given))
    (entry,) = nk.changes(fast)
    assert (entry.action, entry.after) == ("replaced", type(model.norm).__name__)
    assert installed(fast.norm)
    assert not installed(model.norm)
    for theirs, ours in zip(*both(model, fast, given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6 * float(theirs.detach().abs().max()))


@norms
@pytest.mark.parametrize("dtype", HALF)
def test_outputs_and_gradients_are_the_same_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model, given = holder(name, dtype), inputs(name, dtype)
    fast = nk.accelerate(model, tuple(given))
    (entry,) = nk.changes(fast)
    if name == "OverChannels":
        wanted = f"in {str(dtype)[6:]} it rounds otherwise than normkit's kernels"
        assert (entry.action, entry.reason) == ("kept", wanted)
        return
    assert entry.action == "replaced"
    (y, *gradients), (ours, *found) = both(model, fast, given)
    unit = torch.finfo(dtype).eps
    gap = (ours.float() - y.float()).abs()
    assert ours.dtype == y.dtype == dtype
    assert float((gap == 0).float().mean()) >= 0.999
    assert bool((gap <= 2 * unit * y.float().abs()).all())
    for theirs, other in zip(gradients, found, strict=True):
        scale = theirs.float().abs().max()
        assert int((theirs != other).sum()) <= max(1, 0.01 * theirs.numel())
        assert float((theirs.float() - other.float()).abs().max()) <= 2 * unit * scale


@pytest.mark.parametrize("dtype", HALF)
def test_a_gradient_that_the_class_rounds_twice_is_nearer_to_the_truth(dtype: torch.dtype) -> None:
    model, x = Holder(stirred(foreign.CastTwice(48))).to(dtype), inputs("", dtype)
    (y, theirs, _), (other, ours, _) = both(model, nk.accelerate(model, tuple(x)), x)
    exact = copy.deepcopy(model.norm).double()
    wide = x[0].detach().double().requires_grad_()
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(dtype).double()
    (truth,) = torch.autograd.grad(exact.weight * exact.normalized(wide), wide, slope)
    assert float((y == other).float().mean()) >= 0.999
    assert float((ours - truth).abs().mean()) <= float((theirs - truth).abs().mean())


def test_a_wrong_order_of_weight_and_cast_is_not_taken() -> None:
    """They differ in a quarter of the elements, which is what the probe tells them apart by."""
    late, early = stirred(foreign.CastThenWeight(48)), stirred(foreign.WeightThenCast(48))
    x = inputs("", torch.bfloat16)[0]
    assert 0.1 < float((late.bfloat16()(x) != early.bfloat16()(x)).float().mean()) < 0.5


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (foreign.UnbiasedNorm, "neither RMS nor layer norm"),
        (foreign.OutsideNorm, "with an eps inside of the root"),
        (foreign.WeightFirstNorm, "neither RMS nor layer norm"),
        (foreign.DetachedNorm, "with its gradients"),
        (foreign.CountingNorm, "its forward sets calls"),
        (foreign.GroupedNorm, "neither RMS nor layer norm"),
        (foreign.OnlyInEvaluationNorm, "neither RMS nor layer norm"),
        (foreign.InPlaceNorm, "neither RMS nor layer norm"),
    ],
)
def test_what_is_no_such_norm_is_kept_with_the_reason(kind: type[foreign.Weighted], reason: str) -> None:
    fast = nk.accelerate(nn.Sequential(nn.LayerNorm(48), kind(48)), torch.randn(5, 7, 48))
    entry = nk.changes(fast)["1"]
    assert entry.action == "kept"
    assert reason in entry.reason
    assert not installed(fast[1])


def test_other_reasons() -> None:
    replaced = foreign.CastThenWeight(8)
    replaced.forward = lambda x: x  # type: ignore[method-assign]  # as kernels and Liger do
    buffered, lazy, square = (foreign.CastThenWeight(8) for _ in range(3))
    buffered.register_buffer("seen", torch.zeros(1))
    lazy.weight = nn.UninitializedParameter()
    square.weight = nn.Parameter(torch.ones(8, 8))
    nested = foreign.CastThenWeight(8)
    nested.inner = nn.Identity()
    parametrized = nn.utils.parametrizations.weight_norm(foreign.CastThenWeight(8), dim=None)
    reasons = [row_norm_of(module) for module in (replaced, buffered, lazy, square, nested, parametrized)]
    assert reasons == [
        "its forward was replaced on the instance",
        "it holds the buffer seen",
        "it is lazy and has no shape yet: run the model once first",
        "it holds weight (8, 8), and not a weight and a bias over one axis",
        "it holds other modules",
        "it has a parametrized weight",
    ]


def test_a_module_is_probed_on_a_copy() -> None:
    norm = foreign.CountingNorm(8)
    seen: list[Any] = []
    norm.register_forward_hook(lambda *call: seen.append(call))
    before, random = copy.deepcopy(norm.state_dict()), torch.get_rng_state()
    with torch.device("meta"):
        row_norm_of(norm)
    assert (norm.calls, seen) == (0, [])
    assert torch.equal(norm.state_dict()["weight"], before["weight"])
    assert torch.equal(torch.get_rng_state(), random)


def test_a_norm_on_the_meta_device_is_known() -> None:
    with torch.device("meta"):
        norm = foreign.OnePlus(16)
    assert isinstance(row_norm_of(norm), RowNorm)
    assert norm.weight.is_meta


def test_one_probe_serves_a_class_and_a_changed_forward_asks_for_another() -> None:
    class Norm(foreign.CastThenWeight):
        pass

    assert row_norm_of(Norm(8)) is row_norm_of(Norm(8))
    assert row_norm_of(Norm(8)) is not row_norm_of(Norm(8, 1e-5))
    Norm.forward = foreign.OutsideNorm.forward  # type: ignore[method-assign]  # as a library that patches classes
    assert isinstance(row_norm_of(Norm(8)), str)


# -- what the model keeps ----------------------------------------------------------------------------------------------
def block(name: str = "CastThenWeight") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 48), stirred(NORMS[name][0]()), nn.Linear(48, 48))


X = torch.randn(4, 128, 48, generator=torch.Generator().manual_seed(5))


def test_names_classes_parameters_and_hooks_stay() -> None:
    model = block()
    seen: list[int] = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    parameter = model[1].weight
    fast = nk.accelerate(model, X, inplace=True)
    seen.clear()
    fast(X)
    assert fast[1].weight is parameter
    assert type(fast[1]) is foreign.CastThenWeight
    assert list(fast.state_dict()) == list(block().state_dict())
    assert seen == [1]


def test_it_is_copied_saved_and_taken_back() -> None:
    model = block("OnePlus")
    fast = nk.accelerate(model, X)
    stream = io.BytesIO()
    torch.save(fast, stream)
    stream.seek(0)
    for other in (copy.deepcopy(fast), torch.load(stream, weights_only=False)):
        assert installed(other[1])
        assert other[1].__dict__["forward"].owner is other[1]
        with torch.no_grad():
            other[1].weight += 1.0
        assert not torch.equal(other(X), fast(X))
    plain = nk.convert(fast, "torch")
    assert nk.changes(plain)["1"].reason == "what it was before accelerate"
    assert not installed(plain[1])
    assert installed(fast[1])
    assert torch.equal(plain(X), model(X))
    assert nk.changes(nk.accelerate(fast, X))["1"].reason == "it calls normkit's kernels already"


def test_only_what_is_selected_is_replaced_and_taken_back() -> None:
    model = nn.Sequential(foreign.CastThenWeight(48), foreign.OnePlus(48), foreign.NoWeight())
    fast = nk.accelerate(model, X, skip="1")
    assert [installed(norm) for norm in fast] == [True, False, True]
    assert nk.changes(fast)["1"].reason == "left out by skip="
    back = nk.convert(fast, "torch", only="0")
    assert [installed(norm) for norm in back] == [False, False, True]


def test_what_the_check_finds_is_undone() -> None:
    class Saturating(foreign.CastThenWeight):
        """Another function where no probe looks."""

        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) * (1.0 if float(hidden_states.detach().abs().max()) < 1e7 else 0.5)

    model = nn.Sequential(Saturating(48))
    assert nk.changes(nk.accelerate(model, X))["0"].action == "replaced"
    kept = nk.accelerate(model, 1e9 * X, inplace=True)
    entry = nk.changes(kept)["0"]
    assert (entry.action, entry.reason.split(":")[0]) == ("kept", "undone")
    assert "forward" not in model[0].__dict__
    both_norms = nn.ModuleList([Saturating(48), foreign.CountingNorm(48)])
    both_norms.forward = lambda x: both_norms[0](x) + both_norms[1](x)  # type: ignore[method-assign]
    nk.accelerate(both_norms, 1e9 * X, inplace=True)
    assert nk.changes(both_norms)["0"].reason.startswith("undone")
    assert nk.changes(both_norms)["1"].reason.endswith("its forward sets calls")  # nothing of it was undone


def test_a_shared_norm_and_a_tied_weight() -> None:
    norm = stirred(foreign.CastThenWeight(48))
    tied = foreign.CastThenWeight(48)
    tied.weight = norm.weight
    model = nn.Sequential(norm, nn.Linear(48, 48), norm, tied)
    fast = nk.accelerate(model, X)
    assert fast[0] is fast[2]
    assert fast[3].weight is fast[0].weight
    assert len(nk.changes(fast)) == 2
    torch.testing.assert_close(fast(X), model(X), rtol=1e-5, atol=1e-5)


def test_a_call_that_was_not_shown_goes_to_the_class() -> None:
    norm = nk.accelerate(nn.Sequential(stirred(foreign.CastThenWeight(48))), X)[0]
    plain = foreign.CastThenWeight.forward
    wide = X.double()
    assert torch.equal(norm(wide), plain(norm, wide))
    assert torch.equal(norm(X[0, 0]), plain(norm, X[0, 0]))
    assert torch.equal(norm(hidden_states=X), norm(X))
    with pytest.raises(RuntimeError, match="size of tensor"):
        norm(X[..., :7])
    with pytest.raises(TypeError, match="unexpected keyword"):
        norm(X, scale=2)
    with pytest.raises(TypeError, match="missing 1 required"):
        norm()


def test_a_gate_that_is_left_out_goes_to_the_class() -> None:
    model = Holder(stirred(foreign.GateFirst(48)))
    fast = nk.accelerate(model, (X, X + 1))
    assert torch.equal(fast(X), model(X))
    torch.testing.assert_close(fast.norm(X, gate=X + 1), model.norm(X, X + 1), rtol=1e-5, atol=1e-5)


def test_a_subclass_of_layer_norm_with_another_factor() -> None:
    class OnePlusLayerNorm(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.layer_norm(input, self.normalized_shape, self.weight + 1, self.bias, self.eps)

    model = nn.Sequential(stirred(OnePlusLayerNorm(48)))
    fast = nk.accelerate(model, X)
    assert "1 + weight and bias" in nk.changes(fast)["0"].reason
    torch.testing.assert_close(fast(X), model(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_one_plus_a_weight_that_is_rounded_first(dtype: torch.dtype) -> None:
    model = nn.Sequential(stirred(foreign.RoundedOnePlus(48))).to(dtype)
    given = [(2 * torch.randn(64, 48)).to(dtype).requires_grad_()]
    fast = nk.accelerate(model, given[0].detach())
    assert "1 + weight, rounded, multiplies before the cast back" in nk.changes(fast)["0"].reason
    (y, *_), (ours, *_) = both(model, fast, given)
    assert ours.dtype == dtype
    assert float((ours == y).double().mean()) >= 0.999
    truth = copy.deepcopy(model[0]).double()
    truth.weight = nn.Parameter((model[0].weight + 1).double() - 1)  # the rounded factor
    x = given[0].detach().double().requires_grad_()
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    exact = torch.autograd.grad(truth(x), [x, *truth.parameters()], slope.to(dtype).double())
    for one in (model, fast):
        found = torch.autograd.grad(one(given[0]), [given[0], *one.parameters()], slope.to(dtype))
        gaps = [float((a - b).abs().mean() / b.abs().mean()) for a, b in zip(found, exact, strict=True)]
        if one is model:
            theirs = gaps
    assert all(mine <= 1.001 * other for mine, other in zip(gaps, theirs, strict=True))


def test_groups_whose_one_plus_weight_is_rounded_first() -> None:
    model, x = nn.Sequential(stirred(foreign.GroupedRoundedOnePlus(48, 4))).bfloat16(), inputs("", torch.bfloat16)[0]
    fast = nk.accelerate(model, x)
    assert "1 + weight, rounded, multiplies before the cast back" in nk.changes(fast)["0"].reason
    assert float((fast(x) == model(x)).double().mean()) >= 0.999


def test_a_subclass_says_why_it_is_no_such_norm_either() -> None:
    class RoundedFactor(foreign.RoundedOnePlus):
        """Every step of the factor is rounded, the last to three digits."""

        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) if input.dtype == torch.float32 else super().forward(input) * 1.125 / 1.125

    model, x = nn.Sequential(stirred(RoundedFactor(48)), nn.LayerNorm(48)), torch.randn(64, 48)
    assert nk.changes(nk.accelerate(model, x))["0"].action == "replaced"
    (entry,) = nk.changes(nk.accelerate(model.bfloat16(), x.bfloat16())).kept
    assert entry.name == "0"
    assert entry.reason.endswith("; in bfloat16 it rounds otherwise than normkit's kernels")


def test_a_norm_whose_weight_is_no_vector_is_listed() -> None:
    class CohereLayerNorm(nn.Module):
        """A weight for each head and channel."""

        def __init__(self, heads: int, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(heads, width))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * nn.functional.layer_norm(x, x.shape[-1:])

    class NormedLinear(nn.Module):
        """A cosine classifier: "Norm" in its name, and no norm."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(nn.functional.normalize(x, dim=-1), nn.functional.normalize(self.weight))

    class LayerNormLinear(nn.Module):
        """A norm and what follows it: the weight is that of the latter."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.weight = nn.LayerNorm(8), nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.norm(x), self.weight)

    model = nn.Sequential(CohereLayerNorm(3, 8), nn.LayerNorm(8), NormedLinear(), LayerNormLinear())
    changes = nk.changes(nk.accelerate(model, torch.randn(2, 5, 3, 8)))
    found = [(entry.name, entry.action) for entry in changes]
    assert found == [("0", "kept"), ("1", "replaced"), ("3.norm", "replaced")]
    assert "it holds weight (3, 8), and not a weight and a bias over one axis" in changes["0"].reason
    assert nk.norm_keys(model) == ["0.weight", "1.weight", "1.bias", "3.norm.weight", "3.norm.bias"]


@pytest.mark.parametrize("dtype", HALF)
def test_under_autocast(dtype: torch.dtype) -> None:
    model = block()
    fast = nk.accelerate(model, X)
    with torch.autocast("cpu", dtype):
        theirs, ours = model(X), fast(X)
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.01)


def test_under_checkpoints_and_recomputation() -> None:
    model = block()
    expected = torch.autograd.grad(model(X).square().sum(), list(model.parameters()))
    for options in ({}, {"recompute": True}):
        fast = nk.accelerate(model, X, **options)
        y = checkpoint(fast, X, use_reentrant=False)
        found = torch.autograd.grad(y.square().sum(), list(fast.parameters()))
        for theirs, ours in zip(expected, found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_derivatives_of_higher_order_and_transforms() -> None:
    model = block("OnePlus")
    fast = nk.accelerate(model, X)
    found = []
    for one in (model, fast):
        x = X[0, :2].clone().requires_grad_()
        (slope,) = torch.autograd.grad(one(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [x, *one.parameters()]))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    torch.testing.assert_close(torch.vmap(fast)(X), torch.vmap(model)(X), rtol=1e-5, atol=1e-5)


def test_compiled_exported_and_traced() -> None:
    model = block()
    fast = nk.accelerate(model, X)
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), model(X), rtol=1e-5, atol=1e-5)
    exported = torch.export.export(fast, (X,)).module()
    torch.testing.assert_close(exported(X), model(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.fx.symbolic_trace(fast)(X), model(X), rtol=1e-5, atol=1e-5)
