"""Group and instance norm by Triton's kernels under its interpreter, against float64; see `batch_norm_cases.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import contract
from normkit._activation import FUSED, resolve
from normkit._operands import Needs, Operands
from normkit.kernels import native, triton
from normkit.kernels.triton import _group_tile_plan, _tile_plan
from normkit.reference._moments import select, spatial_mask
from normkit.reference.batch_norm import channel_axes, per_channel
from tests.cases import EPS, LAYOUTS, MOMENTUM, gaussian, generator
from tests.kernels.interpreted.traffic import counted
from tests.kernels.interpreted.truth import _slope, _through
from tests.tolerances import assert_within

assert triton.INTERPRETS, "set TRITON_INTERPRET=1"
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")  # numpy, which interprets
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# shape, groups: a group of one channel, of all, of numbers that no power of two divides
SHAPES = [((2, 6), 2), ((3, 9, 11), 3), ((2, 6, 5, 7), 2), ((1, 8, 3, 3), 8), ((2, 4, 3, 2, 5), 1), ((5, 1, 7), 1)]


@dataclass
class Case:
    """One call. x, residual: (N, C, *); weight, bias: (C,); mask: (N, *)."""

    x: Tensor
    groups: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: Any = None
    mask: Tensor | None = None

    def tensors(self) -> list[Tensor | None]:
        return [self.x, self.weight, self.bias, self.residual]

    def call(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        return nk.functional.group_norm(
            x, self.groups, weight, bias, EPS, residual=residual, activation=self.activation, mask=self.mask
        )


@pytest.fixture(params=["tiles", "one pass"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How small tensors are cut: into several tiles and parts, or not at all."""
    if request.param == "tiles":
        monkeypatch.setattr(_tile_plan, "TILE", 64)
        monkeypatch.setattr(_tile_plan, "ON_CHIP", 0)
        monkeypatch.setattr(_tile_plan, "PROGRAMS", 12)
        monkeypatch.setattr(_group_tile_plan, "MERGED", 32)
    return request.param


def make(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous", seed: int = 0,
    mean: float = 0.5, activation: str | None = None, residual: bool = False,
) -> tuple[Case, Tensor]:  # fmt: skip
    """A case and a gradient of its output."""
    g = generator(seed)
    lay = LAYOUTS[layout]
    x, other, dy = (lay(gaussian(shape, g, m).to(dtype)) for m in (mean, 0.1, 0.2))
    weight, bias = (gaussian(shape[1:2], g, 1.0, 0.3).float() for _ in range(2))
    return Case(x, groups, weight, bias, other if residual else None, activation), dy


def run(case: Case, dy: Tensor, backend: str = "triton") -> tuple[Tensor, list[Tensor | None]]:
    """(y, gradients of x, weight, bias, residual)."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in case.tensors()]
    with nk.backend(backend):
        y = case.call(*leaves)  # type: ignore[arg-type]  # x is there
        wanted = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(y, wanted, dy))
    return y.detach(), [None if leaf is None else next(found) for leaf in leaves]


def check(case: Case, dy: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """Run it, and raise unless y and every gradient lie within the bounds around float64."""
    y, gradients = run(case, dy)
    u = contract.unit_roundoff(case.x.dtype)
    keep = spatial_mask(case.mask, case.x)
    x, dy64 = (select(t.double(), keep) for t in (case.x, dy))
    n, axes = x.shape[0], channel_axes(x)
    values = select(torch.ones_like(x), keep).reshape(n, case.groups, -1).sum(-1, keepdim=True).clamp(min=1)

    def average(t: Tensor) -> Tensor:
        t = select(t.expand(x.shape), keep).reshape(n, case.groups, -1)
        return (t.sum(-1, keepdim=True) / values).expand_as(t).reshape(x.shape)

    weight, bias = (per_channel(None if p is None else p.double(), x, d) for p, d in ((case.weight, 1), (case.bias, 0)))
    residual = torch.zeros_like(x) if case.residual is None else select(case.residual.double(), keep)
    centred = x - average(x)
    centred = select(centred - average(centred), keep)
    rstd = (average(centred.square()) + EPS).rsqrt()
    xhat = centred * rstd
    z = xhat * weight + bias + residual
    activation = resolve(case.activation)
    slack = contract.output_bound(xhat, weight, bias, 2.0**-24, residual) + contract.float32_output_bound(xhat, weight)
    assert_within(y, select(activation.function(z), keep), _through(activation.function, z, slack, u), "y")

    g, g_slack = _slope(activation, z, slack)
    g, g_slack = g * dy64, g_slack * dy64.abs()
    d, d_slack = g * weight, g_slack * weight.abs()
    dx = select(rstd * (d - average(d) - xhat * average(d * xhat)), keep)
    bound = contract.input_gradient_bound(d, xhat, rstd, average, max(u, 2.0**-24))
    bound = bound + contract.float32_gradient_bound(d.abs() + d_slack, xhat, rstd, average)
    bound = bound + rstd * (d_slack + average(d_slack) + xhat.abs() * average(d_slack * xhat.abs()))
    assert_within(gradients[0], dx, bound, "dx")
    for name, found, terms in (("dweight", gradients[1], g * xhat), ("dbias", gradients[2], g)):
        if found is not None:
            allowed = contract.parameter_gradient_bound(terms, axes, contract.unit_roundoff(found.dtype))
            lost = contract.float32_parameter_bound(g.abs() + g_slack, xhat, axes)
            assert_within(found, terms.sum(axes), allowed + lost + (g_slack * (1 + xhat.abs())).sum(axes), name)
    if case.residual is not None:
        allowed = contract.residual_gradient_bound(g, u) + g_slack + 2.0**-20 * g.abs()
        assert_within(gradients[3], g, allowed, "dresidual")
    return y, gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_every_shape_in_every_layout(shape: tuple[int, ...], groups: int, layout: str, cut: str) -> None:
    case, dy = make(shape, groups, layout=layout, activation="silu", residual=True)
    y, _ = check(case, dy)
    if native.available():
        with nk.backend("native"):
            assert y.stride() == nk.functional.group_norm(case.x, groups).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_every_dtype(dtype: torch.dtype, layout: str, residual: bool, activation: str | None, cut: str) -> None:
    check(*make((2, 12, 3, 7), 4, dtype, layout, activation=activation, residual=residual))


@pytest.mark.parametrize("activation", sorted(FUSED))
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_every_activation(activation: str, residual: bool, cut: str) -> None:
    check(*make((2, 8, 3, 5), 2, activation=activation, residual=residual, seed=3))


def test_gelu_by_tanh_and_parameters_of_activations() -> None:
    case, dy = make((2, 8, 4, 4), 2, residual=True)
    for module in (torch.nn.GELU("tanh"), torch.nn.LeakyReLU(0.3), torch.nn.ELU(0.7)):
        case.activation = module
        check(case, dy)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_tail(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions, channels of a group and groups of each size up to 70 by turns, in one pass and in tiles by turns."""
    for size in range(1, 71):
        monkeypatch.setattr(_tile_plan, "TILE", 128 if size % 2 else 4096)
        monkeypatch.setattr(_tile_plan, "ON_CHIP", 0 if size % 2 else 8192)
        monkeypatch.setattr(_tile_plan, "PROGRAMS", 12)
        shape, groups = [((1, 4, size), 2), ((1, size, 3), 1), ((1, 2 * size, 2), size)][size // 2 % 3]
        check(*make(shape, groups, layout=layout, activation="silu", residual=True, seed=size))


@pytest.mark.parametrize("mean", [1e2, -1e4, 1e6])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_mean_far_beyond_the_deviation_costs_nothing(mean: float, layout: str, cut: str) -> None:
    check(*make((2, 6, 5, 9), 2, layout=layout, mean=mean, activation="silu", residual=True))


def test_channels_of_a_group_that_lie_far_apart(cut: str) -> None:
    """Their moments merge: what one is apart from another is part of the group's variance."""
    case, dy = make((2, 6, 5, 9), 2, activation="silu")
    case.x += torch.tensor([0.0, 1e3, -1e3, 5.0, 1e4, 1e4]).view(1, 6, 1, 1)
    check(case, dy)


def test_parameters_may_be_missing_or_of_another_dtype(cut: str) -> None:
    for dtype in DTYPES:
        for weight, bias in ((True, False), (False, True), (False, False)):
            case, dy = make((2, 6, 5), 3, dtype, activation="silu")
            case.weight = case.weight.to(dtype) if weight else None
            case.bias = case.bias.to(dtype) if bias else None
            check(case, dy)


def test_a_residual_and_a_gradient_that_are_broadcast(cut: str) -> None:
    for layout in ("contiguous", "channels_last"):
        case, _ = make((2, 6, 5, 7), 3, layout=layout, activation="silu")
        case.residual = torch.linspace(-1, 1, 6).reshape(1, 6, 1, 1).expand(2, 6, 5, 7)
        check(case, torch.ones(()).expand(2, 6, 5, 7))


def test_only_the_gradients_that_are_wanted(cut: str) -> None:
    case, dy = make((2, 6, 5, 7), 3, activation="silu", residual=True)
    _, whole = run(case, dy)
    for kept in range(4):
        leaves = [t.detach().requires_grad_(i == kept) for i, t in enumerate(case.tensors())]
        with nk.backend("triton"):
            case.call(*leaves).backward(dy)
        assert torch.equal(leaves[kept].grad, whole[kept])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_spoils_its_group_alone(value: float, cut: str) -> None:
    case, _ = make((2, 6, 5, 7), 3)
    case.x[1, 2, 3, 4] = value
    with nk.backend("triton"):
        y = case.call(*case.tensors())
    assert y[1, 2:4].isnan().all()
    assert y[0].isfinite().all()
    assert y[1, [0, 1, 4, 5]].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4, 3), (0, 4)], ids=str)
def test_nothing_gives_nothing(shape: tuple[int, ...]) -> None:
    case, dy = make(shape, 2, activation="silu", residual=True)
    y, gradients = run(case, dy)
    assert y.shape == gradients[0].shape == shape
    assert gradients[1].eq(0).all()


def test_the_same_bits_at_every_run(cut: str) -> None:
    case, dy = make((2, 12, 9, 7), 4, activation="silu", residual=True)
    (y, first), (again, second) = run(case, dy), run(case, dy)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_second_derivatives(activation: str | None) -> None:
    case, dy = make((2, 6, 5), 3, activation=activation, residual=True)

    def second(backend: str) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in case.tensors()]
        with nk.backend(backend):
            (dx,) = torch.autograd.grad(case.call(*leaves), leaves[0], dy, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), leaves[:2])

    for actual, expected in zip(second("triton"), second("composed"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_instance_norm_moves_its_statistics(layout: str, cut: str) -> None:
    """Outputs are those of C groups, and the buffers move by the averages over the samples."""
    case, dy = make((3, 6, 5, 7), 6, layout=layout, mean=1e3, activation="silu")
    layer = nk.InstanceNorm2d(6, EPS, MOMENTUM, affine=True, track_running_stats=True, activation="silu")
    twin = nk.InstanceNorm2d(6, EPS, MOMENTUM, affine=True, track_running_stats=True, activation="silu")
    for norm in (layer, twin):
        norm.weight.data, norm.bias.data = case.weight.clone(), case.bias.clone()
    x = case.x.detach().requires_grad_()
    with nk.backend("triton"):
        y = layer(x)
        y.backward(dy)
    expected, gradients = check(case, dy)
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, gradients[0])
    assert y.stride() == x.stride()
    with nk.backend("composed"):
        twin(case.x)
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(buffer, twin.get_buffer(name), rtol=1e-6, atol=1e-6)


def test_recomputed_outputs_are_the_same(cut: str) -> None:
    """A residual that is kept anyway is what the backward reads again."""
    case, dy = make((2, 8, 5, 7), 2, activation="relu", residual=True)
    layer, weight = nk.GroupNorm(2, 8, EPS, activation="relu"), torch.ones(8, 8, 1, 1, requires_grad=True)
    found = []
    for context in (nk.recompute_outputs, nk.backend):
        x, residual = (t.detach().requires_grad_() for t in (case.x, case.residual))
        with nk.backend("triton"), context(*(["triton"] if context is nk.backend else [])):
            y = torch.nn.functional.conv2d(layer(x, residual=residual), weight)
            found.append(torch.autograd.grad(y, [x, residual, weight, layer.weight], dy))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bytes_moved_are_those_of_the_model(dtype: torch.dtype, layout: str, cut: str) -> None:
    """The input is read twice in tiles and once in one pass, the output written once; nothing of that size besides."""
    case, dy = make((2, 16, 8, 8), 4, dtype, layout, activation="silu", residual=True)
    size, sweeps = case.x.nbytes, 1 if cut == "one pass" else 2
    operands, needs, code = Operands(*case.tensors()), Needs(True, True, True, True), resolve("silu")
    parts = _group_tile_plan.plan_group_tiles(case.x, 4).parts
    small = 4 * (2 * 4 * 4 + 4 * parts * 2 * 16 + 2 * 16)  # statistics, parts, parameters, float32
    with counted({"x": case.x, "residual": case.residual}) as (read, written):
        _, saved = triton.group_norm_forward(operands, 4, code, EPS, save=True)
    assert (read["x"], read["residual"]) == (sweeps * size, size)
    assert size <= written["others"] <= size + small
    with counted({"x": case.x, "dy": dy, "residual": case.residual}) as (read, written):
        triton.group_norm_backward(dy, operands, saved, 4, code, needs)
    assert {read[name] for name in ("x", "dy", "residual")} == {sweeps * size}
    assert 2 * size <= written["others"] <= 2 * size + small


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("activation", ["relu", "silu", None])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize(
    "make_layer",
    [
        lambda activation: nk.GroupNorm(2, 6, EPS, activation=activation),
        lambda activation: nk.InstanceNorm2d(6, EPS, affine=True, track_running_stats=True, activation=activation),
    ],
    ids=["group", "instance"],
)
def test_a_compiled_layer_is_one_graph_with_the_same_numbers(
    make_layer: Callable[[str | None], torch.nn.Module], residual: bool, activation: str | None, fresh: None
) -> None:
    case, dy = make((2, 6, 5, 7), 2, layout="channels_last", residual=residual)
    layer, twin = make_layer(activation), make_layer(activation)
    found = []
    for norm in (torch.compile(layer, fullgraph=True, backend="aot_eager"), twin):
        leaves = [t.detach().requires_grad_() for t in (case.x, case.residual) if t is not None]
        with nk.backend("triton"):
            y = norm(leaves[0], **({"residual": leaves[1]} if residual else {}))
            y.backward(dy)
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].stride() == found[1][0].stride()
    torch.testing.assert_close(dict(layer.state_dict()), dict(twin.state_dict()))


def test_a_modulation_follows_the_kernel(cut: str) -> None:
    case, _ = make((2, 6, 5, 7), 3, activation="silu", residual=True)
    options = {"residual": case.residual, "activation": "silu", "modulate": (torch.rand(2, 6), torch.rand(2, 6))}
    found = []
    for backend in ("triton", "composed"):
        with nk.backend(backend):
            found.append(nk.functional.group_norm(case.x, 3, case.weight, case.bias, EPS, **options))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
