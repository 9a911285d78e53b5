"""Batch norm by Triton's kernels under its interpreter, against float64. `tests/kernels/test_triton.py` runs this file
in a process of its own, since TRITON_INTERPRET counts when a kernel is defined.

The shapes are small; what they would be cut into on a GPU is made smaller with them (`cut`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import triton as triton_language
import triton.language as tl
from torch import Tensor

import normkit as nk
from normkit._activation import FUSED, resolve
from normkit._operands import Needs, Operands
from normkit.contract import FLOAT32_STATISTICS
from normkit.functional import choose as _choose
from normkit.kernels import native, triton
from normkit.kernels.triton import _tile_plan, _tiles
from tests.cases import EPS, LAYOUTS, MOMENTUM, gaussian, generator
from tests.kernels.interpreted.traffic import counted
from tests.kernels.interpreted.truth import Case, check, run
from tests.tolerances import assert_within

assert triton.INTERPRETS, "set TRITON_INTERPRET=1"
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")  # numpy, which interprets
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 3), (33, 1), (5, 67), (3, 5, 11), (7, 4, 1), (4, 6, 5, 7), (1, 8, 3, 3), (2, 4, 3, 2, 5)]


@pytest.fixture(params=["tiles", "one pass"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How small tensors are cut: into several tiles and parts, or not at all."""
    if request.param == "tiles":
        monkeypatch.setattr(_tile_plan, "TILE", 128)
        monkeypatch.setattr(_tile_plan, "ON_CHIP", 8)
        monkeypatch.setattr(_tile_plan, "PROGRAMS", 6)
    return request.param


def drawn(rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Each row with one of the two cuts by turns, and with the other at night; for `parametrize`, "cut" last."""
    cuts = ("tiles", "one pass")
    found = [pytest.param(*row, cuts[i % 2]) for i, row in enumerate(rows)]
    return found + [pytest.param(*row, cuts[1 - i % 2], marks=pytest.mark.nightly) for i, row in enumerate(rows)]


def make(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: str = "contiguous", seed: int = 0,
    mean: float = 0.5, activation: str | None = None, residual: bool = False,
) -> tuple[Case, Tensor]:  # fmt: skip
    """A case and a gradient of its output."""
    g = generator(seed)
    lay = LAYOUTS[layout]
    x, other, dy = (lay(gaussian(shape, g, m).to(dtype)) for m in (mean, 0.1, 0.2))
    weight, bias = (gaussian(shape[1:2], g, 1.0, 0.3).float() for _ in range(2))
    return Case(x, weight, bias, other if residual else None, activation), dy


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape: tuple[int, ...], cut: str) -> None:
    for layout in ("contiguous", "channels_last") if len(shape) > 2 else ("contiguous",):
        check(*make(shape, layout=layout, activation="relu", residual=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 7), (7, 4, 1), (2, 6, 5, 7)], ids=str)
def test_every_layout(shape: tuple[int, ...], layout: str) -> None:
    """In and out: the output has the strides that the native kernels give it."""
    case, dy = make(shape, layout=layout, activation="relu", residual=True)
    y, gradients = check(case, dy)
    assert gradients[0].shape == case.x.shape
    if native.available():
        with nk.backend("native"):
            assert y.stride() == nk.functional.batch_norm(case.x, None, None, training=True).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_every_dtype(dtype: torch.dtype, layout: str, activation: str | None, cut: str) -> None:
    check(*make((3, 9, 4, 7), dtype, layout, activation=activation, residual=activation != "silu"))


@pytest.mark.parametrize("activation", sorted(FUSED))
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_every_activation(activation: str, residual: bool) -> None:
    check(*make((3, 8, 4, 8), activation=activation, residual=residual, seed=3))


def test_gelu_by_tanh_and_parameters_of_activations() -> None:
    case, dy = make((3, 8, 4, 8), residual=True)
    for module in (torch.nn.GELU("tanh"), torch.nn.LeakyReLU(0.3), torch.nn.ELU(0.7)):
        case.activation = module
        check(case, dy)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sizes", [range(1, 36), range(36, 71)], ids=["1-35", "36-70"])
def test_every_tail(sizes: range, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost axis of each size up to 70, which no tile divides; in one pass and in tiles by turns."""
    for size in sizes:
        monkeypatch.setattr(_tile_plan, "TILE", 128 if size % 2 else 4096)
        monkeypatch.setattr(_tile_plan, "ON_CHIP", 8 if size % 2 else 8192)
        shape = (3, 2, size) if layout == "contiguous" else (3, size, 2)
        check(*make(shape, layout=layout, activation="relu", residual=True, seed=size))


@pytest.mark.parametrize("mean", [1e2, -1e4, 1e6])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_mean_far_beyond_the_deviation_costs_nothing(mean: float, layout: str, cut: str) -> None:
    check(*make((4, 4, 5, 7), layout=layout, mean=mean, activation="relu", residual=True))


def test_statistics_at_a_mean_far_beyond_the_deviation(cut: str) -> None:
    """Variance and mean within 16 roundings of float32 of the variance, and of the deviation."""
    for mean in (0.0, 1e2, 1e4, 1e6):
        x = gaussian((8, 3, 37), generator(1), mean).float()
        new_mean, new_var = torch.zeros(3), torch.zeros(3)
        with nk.backend("triton"):
            nk.functional.batch_norm(x, new_mean, new_var, training=True, momentum=1.0)
        var = x.double().var((0, 2))
        assert_within(new_var, var, FLOAT32_STATISTICS * var)
        exact = x.double().mean((0, 2))
        assert_within(new_mean, exact, FLOAT32_STATISTICS * var.sqrt() + 2.0**-24 * exact.abs())


def test_an_outlier_or_an_empty_border_first_spoils_nothing(cut: str) -> None:
    """The first values are no sample of the rest: a shift by them would lose what they are apart."""
    case, dy = make((6, 4, 5, 9), mean=1e3)
    case.x[0], case.x[:, :, 0] = 0, 0
    check(case, dy)
    case.x[0, :, 0, 0] = 1e7
    check(case, dy)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_parameters_may_be_missing_or_of_another_dtype(training: bool, cut: str) -> None:
    for dtype in DTYPES:
        for weight, bias in ((True, False), (False, True), (False, False)):
            case, dy = make((4, 5, 6), dtype, activation="silu")
            case.weight = case.weight.to(dtype) if weight else None
            case.bias = case.bias.to(dtype) if bias else None
            if not training:
                case.mean, case.var = torch.linspace(-1, 1, 5), torch.linspace(0.5, 2, 5)
            check(case, dy)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_evaluation(layout: str, activation: str | None, cut: str) -> None:
    case, dy = make((4, 9, 5, 7), layout=layout, activation=activation, residual=True)
    case.mean, case.var = torch.linspace(-1, 1, 9), torch.linspace(0.5, 2, 9)
    check(case, dy)


def test_a_residual_that_is_broadcast(cut: str) -> None:
    for layout in ("contiguous", "channels_last"):
        case, dy = make((4, 6, 5, 7), layout=layout, activation="relu")
        case.residual = torch.linspace(-1, 1, 6).reshape(1, 6, 1, 1).expand(4, 6, 5, 7)
        check(case, dy)
        check(case, torch.ones(()).expand(4, 6, 5, 7))


def test_only_the_gradients_that_are_wanted(cut: str) -> None:
    case, dy = make((4, 6, 5, 7), activation="silu", residual=True)
    _, whole = run(case, dy)
    for kept in range(4):
        leaves = [t.detach().requires_grad_(i == kept) for i, t in enumerate(case.tensors())]
        with nk.backend("triton"):
            y = nk.functional.batch_norm(
                leaves[0], None, None, *leaves[1:3], True, eps=EPS, residual=leaves[3], activation="silu"
            )
            y.backward(dy)
        assert torch.equal(leaves[kept].grad, whole[kept])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_spoils_its_channel_alone_and_moves_nothing(value: float, cut: str) -> None:
    case, _ = make((4, 6, 5, 7))
    case.x[1, 2, 3, 4] = value
    layer = nk.BatchNorm2d(6, eps=EPS)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with nk.backend("triton"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        y = layer(case.x)
    assert y[:, 2].isnan().all()
    assert y[:, [0, 1, 3, 4, 5]].isfinite().all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_activations_pass_nan_and_close_on_an_infinite_gradient() -> None:
    x = torch.tensor([[-3.0], [torch.nan], [5.0], [8.0]])
    mean, var = torch.zeros(1), torch.ones(1) - EPS
    for name in sorted(FUSED):
        case = Case(x, activation=name, mean=mean, var=var)
        y, gradients = run(case, torch.ones(4, 1))
        assert y.isnan().flatten().tolist() == [False, True, False, False], name
        assert not gradients[0][[0, 2, 3]].isnan().any(), name
    for name in ("relu", "relu6", "hardswish", "hardsigmoid"):
        _, gradients = run(Case(x[:1] - 1, activation=name, mean=mean, var=var), torch.full((1, 1), torch.inf))
        assert gradients[0].item() == 0.0, name


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 3), (2, 0, 5)], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_nothing_gives_nothing(shape: tuple[int, ...], training: bool) -> None:
    layer = nk.BatchNorm1d(shape[1], eps=EPS).train(training)
    twin = copy.deepcopy(layer)
    x = torch.zeros(shape, requires_grad=True)
    with nk.backend("triton"):
        y = layer(x)
        y.sum().backward()
    twin(x.detach())
    assert y.shape == x.shape == x.grad.shape
    assert layer.weight.grad.eq(0).all()
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True))


def test_one_value_is_refused_in_training_as_elsewhere() -> None:
    with nk.backend("triton"), pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nk.BatchNorm1d(3)(torch.ones(1, 3))


@pytest.mark.parametrize("momentum", [MOMENTUM, 1.0, 0.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_running_statistics_move_in_the_kernels(momentum: float, dtype: torch.dtype, cut: str) -> None:
    """By the new value, not by the difference; in the buffers' own dtype, one rounding a forward."""
    buffers = {path: (torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)) for path in ("triton", "composed")}
    versions = [buffer._version for buffer in buffers["triton"]]
    for seed in range(2):
        case, _ = make((4, 6, 5, 7), seed=seed, mean=3.0)
        for path, (mean, var) in buffers.items():
            with nk.backend(path):
                nk.functional.batch_norm(case.x, mean, var, training=True, momentum=momentum)
    assert all(buffer._version > version for buffer, version in zip(buffers["triton"], versions, strict=True))
    for actual, expected in zip(*buffers.values(), strict=True):
        assert actual.dtype == dtype
        assert_within(actual, expected, (2.0**-20 + 3 * torch.finfo(dtype).eps) * expected.abs().double())


def test_batches_are_counted_and_averaged_in_the_kernels(cut: str) -> None:
    """momentum=None: the cumulative average."""
    layer, twin = (nk.BatchNorm2d(6, momentum=None) for _ in range(2))
    for seed in range(3):
        case, _ = make((4, 6, 5, 7), seed=seed, mean=3.0)
        with nk.backend("triton"):
            layer(case.x)
        twin(case.x)
    assert layer.num_batches_tracked == twin.num_batches_tracked == 3
    torch.testing.assert_close(dict(layer.state_dict()), dict(twin.state_dict()))


def test_buffers_that_kernels_do_not_take_move_in_python(cut: str) -> None:
    case, _ = make((4, 6, 5, 7))
    mean, var = torch.zeros(12)[::2], torch.ones(12)[::2]
    twin_mean, twin_var = mean.clone(), var.clone()
    with nk.backend("triton"):
        nk.functional.batch_norm(case.x, mean, var, training=True, momentum=MOMENTUM)
        nk.functional.batch_norm(case.x, twin_mean, twin_var, training=True, momentum=MOMENTUM)
    torch.testing.assert_close(mean, twin_mean)
    torch.testing.assert_close(var, twin_var)


def test_a_recomputation_and_a_deferred_update_move_nothing_twice(cut: str) -> None:
    layer = nk.BatchNorm2d(6)
    case, dy = make((4, 6, 5, 7))
    with nk.backend("triton"):
        x = case.x.requires_grad_()
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).backward(dy)
        assert layer.num_batches_tracked == 1
        with nk.deferred_statistics(layer):
            before = layer.running_mean.clone()
            layer(case.x)
            assert torch.equal(layer.running_mean, before)
        assert not torch.equal(layer.running_mean, before)


def test_two_runs_give_the_same_bits(cut: str) -> None:
    case, dy = make((5, 3, 5, 7), activation="relu", residual=True)
    (y, first), (again, second) = run(case, dy), run(case, dy)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_second_derivatives_are_those_of_the_operations(activation: str | None, cut: str) -> None:
    case, dy = make((4, 3, 5), activation=activation, residual=True)

    def second(path: str) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in case.tensors()]
        with nk.backend(path):
            y = nk.functional.batch_norm(
                leaves[0], None, None, *leaves[1:3], True, eps=EPS, residual=leaves[3], activation=activation
            )
            (dx,) = torch.autograd.grad(y, leaves[0], dy, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), leaves[:2])

    for actual, expected in zip(second("triton"), second("composed"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_hooks_on_saved_tensors_get_the_statistics_whole(cut: str) -> None:
    """Packed to bfloat16, say: bytes come back as they were."""
    case, dy = make((4, 3, 5), activation="relu", residual=True)
    y, plain = run(case, dy)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.double(), lambda t: t):
        again, packed = run(case, dy)
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(plain, packed, strict=True))


@pytest.mark.parametrize(
    ("dtype", "layout", "activation"),
    [
        (torch.float32, "contiguous", "relu"), (torch.bfloat16, "channels_last", "relu"),
        (torch.float32, "channels_last", "silu"),
    ],
    ids=str,
)  # fmt: skip
def test_bytes_moved_are_those_of_the_model(dtype: torch.dtype, layout: str, activation: str, cut: str) -> None:
    """The input is read twice in tiles and once in one pass, the output written once; nothing of that size besides.

    ReLU keeps a bit an element, SiLU reads the residual again. Vectors and parts are `others`, which count little.
    """
    case, dy = make((4, 16, 6, 8), dtype, layout, activation=activation, residual=True)
    size, sweeps = case.x.nbytes, 1 if cut == "one pass" else 2
    operands, needs = Operands(*case.tensors()), Needs(True, True, True, True)
    code = resolve(activation)
    bits = case.x.numel() // 8 if activation == "relu" else 0
    with counted({"x": case.x, "residual": case.residual}) as (read, written):
        y, saved = triton.batch_norm_forward(operands, code, EPS, save=True)
    assert (read["x"], read["residual"]) == (sweeps * size, size)
    small = 4 * 5 * 16 * (1 + 6)  # statistics and parts in five rows, float32
    assert size + bits <= written["others"] <= size + bits + small
    kept = operands if saved.bits is None else operands._replace(residual=None)
    large = {"x": case.x, "dy": dy, "residual": case.residual, "y": y}
    large |= {} if saved.bits is None else {"bits": saved.bits}
    with counted(large) as (read, written):
        triton.batch_norm_backward(dy, kept, saved, code, needs, training=True)
    expected = {"x": sweeps * size, "dy": sweeps * size, "residual": 0 if bits else sweeps * size, "y": 0}
    assert {name: read[name] for name in expected} == expected
    assert read["bits"] == sweeps * bits
    assert 2 * size <= written["others"] <= 2 * size + small + 8 * 16


@triton_language.jit
def farthest(out, tile, channel, N, C, S, BN: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, LAST: tl.constexpr):
    """The largest offset of a tile, and that of its bits."""
    offset, inside, _ = _tiles.place(tile, channel, N, C, S, BN, BC, BS, LAST)
    tl.store(out, tl.max(tl.where(inside, offset, 0)))
    offset, inside = _tiles.place_bits(tile, channel, N, C, S, BN, BC, BS, LAST)
    tl.store(out + 1, tl.max(tl.where(inside, offset, 0)))


def test_offsets_are_of_64_bits() -> None:
    """Of the last tile of tensors of 2^35 elements, whose bits take 2^32 bytes."""
    found = torch.zeros(2, dtype=torch.int64)
    n, c, s = 1 << 15, 1 << 10, 1 << 10
    farthest[(1,)](found, n // 4 * (s // 32) - 1, c - 8, n, c, s, BN=4, BC=8, BS=32, LAST=False)
    assert found.tolist() == [2**35 - 1, 2**32 - 1]
    farthest[(1,)](found, n * s // 32 - 1, c - 8, 1, c, n * s, BN=1, BC=8, BS=32, LAST=True)
    assert found.tolist() == [2**35 - 1, 2**32 - 1]


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_a_compiled_layer_is_one_graph_with_the_same_numbers(layout: str, residual: bool, fresh: None) -> None:
    case, dy = make((4, 6, 5, 7), layout=layout, residual=residual)
    layer, twin = (nk.BatchNorm2d(6, eps=EPS, activation="relu") for _ in range(2))
    found = []
    for norm in (torch.compile(layer, fullgraph=True, backend="aot_eager"), twin):
        leaves = [t.detach().requires_grad_() for t in (case.x, case.residual) if t is not None]
        with nk.backend("triton"):
            y = norm(leaves[0], **({"residual": leaves[1]} if residual else {}))
            y.backward(dy)
        found.append([y.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    torch.testing.assert_close(dict(layer.state_dict()), dict(twin.state_dict()))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_hooks_may_change_the_memory_format_of_what_a_graph_saves(layout: str, backend: str, fresh: None) -> None:
    def other_format(t: Tensor) -> Tensor:
        last = t.dim() == 4 and t.is_contiguous()
        return t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    case, dy = make((2, 8, 2, 4), layout=layout, residual=True)  # whose bits are as many bytes in either order
    layer, found = nk.BatchNorm2d(8, eps=EPS, activation="relu"), []
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for unpack in (Tensor.detach, other_format):
        leaves = [t.detach().requires_grad_() for t in (case.x, case.residual) if t is not None]
        with nk.backend("triton"), torch.autograd.graph.saved_tensors_hooks(Tensor.detach, unpack):
            y = compiled(leaves[0], residual=leaves[1])
        found.append([y.detach(), *torch.autograd.grad(y, leaves, dy)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_reasons_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(4, 3)
    asked = "backend 'triton' was asked for and cannot serve this call: "
    with nk.backend("triton"):
        with pytest.raises(RuntimeError, match=asked + "no Triton kernel for torch.float64"):
            nk.functional.batch_norm(x.double(), None, None, training=True)
        with pytest.raises(RuntimeError, match=asked + "normkit has no Triton kernels of layer_norm"):
            nk.functional.layer_norm(x, (3,))
        with pytest.raises(RuntimeError, match=asked + "a torch.func transform"):
            torch.func.grad(lambda x: nk.functional.batch_norm(x, None, None, training=True).sum())(x)
    assert _choose._requested is None
