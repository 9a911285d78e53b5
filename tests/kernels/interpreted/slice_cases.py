"""Ghost slices, renorm and synchronised batch norm by Triton's kernels under its interpreter, against float64; see
`batch_norm_cases.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from normkit._activation import resolve
from normkit._operands import Needs, Operands
from normkit.functional.ghost_batch_norm import slice_sizes
from normkit.kernels import triton
from normkit.kernels.triton import _tile_plan
from normkit.reference.batch_renorm import correction
from tests import processes
from tests.cases import EPS, MOMENTUM, generator, random_mask
from tests.kernels.interpreted import ranks, truth
from tests.kernels.interpreted.batch_norm_cases import cut as cut
from tests.kernels.interpreted.batch_norm_cases import drawn, make
from tests.kernels.interpreted.mask_cases import masked
from tests.kernels.interpreted.traffic import counted
from tests.kernels.interpreted.truth import Case, Truths

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")  # numpy, which interprets
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# --- ghost batch norm

GHOST = [  # shape, virtual batch, dtype, layout, activation, residual, mask
    ((7, 3, 5, 7), 3, F32, "contiguous", "relu", True, False),
    ((7, 9, 3, 5), 4, F32, "channels_last", "relu", True, True),
    ((9, 5, 11), 2, BF16, "contiguous", "silu", True, False),
    ((9, 16, 8), 4, F16, "channels_last", None, False, False),
    ((13, 33), 4, F32, "contiguous", "leaky_relu", True, True),
    ((8, 3, 1, 9), 4, F32, "transposed", None, True, True),
    ((6, 2, 4, 8), 3, F32, "contiguous", "gelu", False, True),
    ((7, 2, 3, 2, 5), 3, F32, "channels_last", "relu6", True, False),
]


def truths_of_slices(case: Case, dy: Tensor, sizes: list[int]) -> Truths:
    """Each slice's own; the parameters' gradients, and what they may be off, added."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        cut = {name: None if t is None else t[part] for name, t in (("residual", case.residual), ("mask", case.mask))}
        for name, pair in truth.truths(replace(case, x=case.x[part], **cut), dy[part]).items():
            found.setdefault(name, []).append(pair)
        start += size
    joined: Truths = {}
    for name, pairs in found.items():
        expected, allowed = zip(*pairs, strict=True)
        if name in ("dweight", "dbias"):
            joined[name] = torch.stack(expected).sum(0), torch.stack(allowed).sum(0)
        else:
            joined[name] = torch.cat(expected), torch.cat(allowed)
    return joined


@pytest.mark.parametrize(
    ("shape", "size", "dtype", "layout", "activation", "residual", "hides", "cut"), drawn(GHOST), ids=str,
    indirect=["cut"],
)  # fmt: skip
def test_each_slice_has_its_own_statistics(
    shape: tuple[int, ...], size: int, dtype: torch.dtype, layout: str, activation: str | None, residual: bool,
    hides: bool, cut: str,
) -> None:  # fmt: skip
    case, dy = make(shape, dtype, layout, activation=activation, residual=residual)
    if hides:
        masked(case, dy)
        case.mask[:2] = False  # a slice of two may have no value
    y, gradients = truth.run(case, dy, nk.functional.ghost_batch_norm, virtual_batch_size=size)
    sizes = slice_sizes(shape[0], size)
    assert len(sizes) > 1
    truth.compare([y, *gradients], truths_of_slices(case, dy, sizes))


def test_slices_are_those_of_batch_norm_bit_by_bit_and_of_the_reference(cut: str) -> None:
    case, dy = make((9, 2, 5, 7), mean=1e5)
    y, (dx, *_) = truth.run(case, dy, nk.functional.ghost_batch_norm, virtual_batch_size=3)
    for part in (slice(0, 3), slice(3, 6), slice(6, 9)):
        alone, (gradient, *_) = truth.run(replace(case, x=case.x[part]), dy[part])
        torch.testing.assert_close(y[part], alone, rtol=2.0**-20, atol=2.0**-20)
        torch.testing.assert_close(dx[part], gradient, rtol=2.0**-20, atol=2.0**-20)
    parameters = (case.weight.double(), case.bias.double())
    expected, _, _ = reference.ghost_batch_norm(case.x.double(), *parameters, EPS, 3)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [MOMENTUM, None], ids=str)
@pytest.mark.parametrize("hides", [False, True], ids=["", "mask"])
def test_slices_move_the_running_statistics_once_by_all_of_them(momentum: float | None, hides: bool, cut: str) -> None:
    """In the kernels; and in Python where the update is deferred."""
    layers = [nk.GhostBatchNorm2d(3, virtual_batch_size=4, momentum=momentum) for _ in range(2)]
    alone = nk.BatchNorm1d(3, momentum=momentum)
    for seed in range(2):
        case, dy = make((7, 3, 3, 5), seed=seed, mean=3.0)
        if hides:
            masked(case, dy, seed=seed)
        with nk.backend("triton"):
            layers[0](case.x, mask=case.mask)
            with nk.deferred_statistics(layers[1]):
                layers[1](case.x, mask=case.mask)
        rows = case.x.movedim(1, -1)
        alone(rows.reshape(-1, 3) if case.mask is None else rows[case.mask])
    for layer in layers:
        torch.testing.assert_close(dict(layer.named_buffers()), dict(alone.named_buffers()), rtol=1e-6, atol=1e-6)


def test_slices_move_nothing_by_a_value_that_is_not_finite(cut: str) -> None:
    case, _ = make((6, 3, 5))
    case.x[5, 1, 2] = torch.inf
    layer = nk.GhostBatchNorm1d(3, virtual_batch_size=2)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with nk.backend("triton"):
        y = layer(case.x)
    assert y[:4].isfinite().all()
    assert y[4:, 1].isnan().any()
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_slices_read_and_write_the_bytes_of_batch_norm(cut: str) -> None:
    case, dy = make((6, 4, 6, 8), activation="relu", residual=True)
    size, code, sizes = case.x.nbytes, resolve("relu"), slice_sizes(6, 3)
    sweeps = 1 if _tile_plan.plan_tiles(case.x, sizes).whole else 2
    assert sweeps == (1 if cut == "one pass" else 2)
    operands = Operands(*case.tensors())
    with counted({"x": case.x, "residual": case.residual}) as (read, _):
        _, saved = triton.batch_norm_forward(operands, code, EPS, save=True, sizes=sizes)
    assert (read["x"], read["residual"]) == (sweeps * size, size)
    kept = operands._replace(residual=None)
    with counted({"x": case.x, "dy": dy}) as (read, _):
        needs = Needs(True, True, True, True)
        triton.batch_norm_backward(dy, kept, saved, code, needs, training=True, sizes=sizes)
    assert (read["x"], read["dy"]) == (sweeps * size, sweeps * size)


# --- batch renorm


def renormed(case: Case, dy: Tensor, run: tuple[Tensor, Tensor], limits: tuple[float, float]) -> Truths:
    """Batch norm's truths under the weight r * weight and the bias d * weight + bias, led back to weight and bias."""
    x = case.x.double()
    last = x.movedim(1, -1)
    real = last.reshape(-1, last.shape[-1]) if case.mask is None else last[case.mask]
    r, d = correction(real.mean(0), real.var(0, correction=0), *(t.double() for t in run), EPS, *limits)
    weight, bias = case.weight.double(), case.bias.double()
    found = truth.truths(replace(case, weight=r * weight, bias=d * weight + bias), dy)
    (dscale, of_scale), (dshift, of_shift) = found["dweight"], found["dbias"]
    lost = 2.0**-20 * (dscale.abs() + dshift.abs())  # one gradient's rounding to float32 before it is scaled, and r, d
    found["dweight"] = r * dscale + d * dshift, r * (of_scale + lost) + d.abs() * (of_shift + lost) + lost
    found["dbias"] = dshift, of_shift + lost
    return found


RENORM = [  # shape, dtype, layout, activation, residual, mask, mean, limits
    ((4, 2, 5, 7), F32, "contiguous", "relu", True, False, 0.5, (3.0, 5.0)),
    ((4, 9, 3, 5), F32, "channels_last", "silu", True, True, 0.5, (1.5, 0.2)),
    ((5, 9), F32, "contiguous", None, False, False, 1.0, (1.0, 0.0)),
    ((4, 9, 8), BF16, "channels_last", "relu", True, True, 0.5, (3.0, 5.0)),
    ((4, 3, 11), F32, "transposed", None, True, False, 2.0, (3.0, 5.0)),
]


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "activation", "residual", "hides", "mean", "limits", "cut"), drawn(RENORM), ids=str,
    indirect=["cut"],
)  # fmt: skip
def test_renorm_is_batch_norm_corrected(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, activation: str | None, residual: bool, hides: bool,
    mean: float, limits: tuple[float, float], cut: str,
) -> None:  # fmt: skip
    case, dy = make(shape, dtype, layout, activation=activation, residual=residual, mean=mean)
    if hides:
        masked(case, dy)
    run = torch.linspace(-1, 1, shape[1]), torch.linspace(0.5, 2, shape[1])

    def norm(x: Tensor, mean: Tensor, var: Tensor, *given: Any, **options: Any) -> Tensor:
        r_max, d_max = limits
        return nk.functional.batch_renorm(
            x, run[0].clone(), run[1].clone(), *given, r_max=r_max, d_max=d_max, **options
        )

    y, gradients = truth.run(case, dy, norm)
    truth.compare([y, *gradients], renormed(case, dy, run, limits))


@pytest.mark.parametrize("hides", [False, True], ids=["", "mask"])
def test_a_renorm_layer_is_that_of_the_operations(hides: bool, cut: str) -> None:
    """Its limits follow the clock; buffers move after use, and a recomputation uses the forward's r and d."""
    found = []
    for path in ("triton", "composed"):
        layer = nk.BatchRenorm2d(2, EPS, MOMENTUM, warm_up=(0, 1, 1), activation="relu")
        results = []
        for seed in range(2):
            case, dy = make((4, 2, 3, 7), seed=seed, mean=2.0)
            mask = random_mask(case.x.shape, generator(seed)) if hides else None
            x = case.x.detach().requires_grad_()
            with nk.backend(path):
                y = torch.utils.checkpoint.checkpoint(layer, x, mask=mask, use_reentrant=False)
                y.backward(dy)
            results += [y.detach(), x.grad]
        found.append([*results, layer.weight.grad, *layer.buffers()])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make_layer",
    [lambda: nk.GhostBatchNorm1d(3, virtual_batch_size=2), lambda: nk.BatchRenorm1d(3, EPS, warm_up=(0, 0, 0))],
    ids=["ghost", "renorm"],
)
def test_second_derivatives_are_those_of_the_operations(make_layer: Callable[[], nn.Module], cut: str) -> None:
    case, dy = make((4, 3, 9), mean=0.1)
    found = []
    for path in ("triton", "composed"):
        x, layer = case.x.detach().requires_grad_(), make_layer()
        with nk.backend(path):
            (dx,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
            found.append(torch.autograd.grad(dx.square().sum(), [x, *layer.parameters()], allow_unused=True)[:2])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_two_runs_give_the_same_bits(cut: str) -> None:
    case, dy = make((7, 2, 3, 7), activation="relu", residual=True)
    run = torch.zeros(2), torch.ones(2)
    norms: list[Callable[..., Tensor]] = [
        lambda x, _mean, _var, *given, **options: nk.functional.batch_renorm(x, *run, *given, momentum=0.0, **options),
        lambda *given, **options: nk.functional.ghost_batch_norm(*given, virtual_batch_size=3, **options),
    ]
    for norm in norms:
        (y, first), (again, second) = truth.run(case, dy, norm), truth.run(case, dy, norm)
        assert torch.equal(y, again)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_deterministic_algorithms_change_no_bit_and_raise_nothing(cut: str) -> None:
    """torch then fills new memory with NaN: nothing is read that was not written."""
    case, dy = make((6, 2, 3, 7), activation="relu", residual=True)
    run = torch.zeros(2), torch.ones(2)
    hidden = random_mask(case.x.shape, generator(3))

    def renorm(x: Tensor, _mean: None, _var: None, *given: Any, **options: Any) -> Tensor:
        return nk.functional.batch_renorm(x, *run, *given, momentum=0.0, **options)

    def ghost(*given: Any, **options: Any) -> Tensor:
        return nk.functional.ghost_batch_norm(*given, virtual_batch_size=3, **options)

    def group(x: Tensor, _mean: None, _var: None, weight: Tensor, bias: Tensor, *_: Any, **options: Any) -> Tensor:
        return nk.functional.group_norm(x, 2, weight, bias, **options)

    before = torch.are_deterministic_algorithms_enabled()
    for norm, mask in ((nk.functional.batch_norm, None), (ghost, hidden), (renorm, hidden), (group, hidden)):
        given = replace(case, mask=mask)
        y, plain = truth.run(given, dy, norm)
        torch.use_deterministic_algorithms(True)
        try:
            again, strict = truth.run(given, dy, norm)
        finally:
            torch.use_deterministic_algorithms(before)
        assert torch.equal(y, again)
        assert all(torch.equal(a, b) for a, b in zip(plain, strict, strict=True))


# --- synchronised batch norm


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one rank, in which a layer gathers and adds up as among many."""
    monkeypatch.setattr("normkit.nn.sync_batch_norm.is_distributed", lambda group: True)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("layout", "activation", "residual", "hides", "cut"),
    drawn(
        [("contiguous", "relu", True, False), ("channels_last", "silu", True, True), ("contiguous", None, False, True)]
    ),
    indirect=["cut"],
)
def test_one_rank_of_a_group_is_batch_norm(
    layout: str, activation: str | None, residual: bool, hides: bool, cut: str, group: None
) -> None:
    case, dy = make((4, 3, 3, 7), layout=layout, activation=activation, residual=residual, mean=100.0)
    if hides:
        masked(case, dy)
    layer = nk.SyncBatchNorm(3, EPS, MOMENTUM)
    twin = nk.BatchNorm2d(3, EPS, MOMENTUM)

    def norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *_: Any, **options: Any) -> Tensor:
        options.pop("eps")
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,), options)

    y, gradients = truth.run(case, dy, norm)
    truth.compare([y, *gradients], truth.truths(case, dy))
    with nk.backend("composed"):
        twin(case.x, mask=case.mask)
    torch.testing.assert_close(dict(layer.named_buffers()), dict(twin.named_buffers()))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return processes.results("tests.kernels.interpreted.ranks", tmp_path_factory.mktemp("ranks"), 2, ranks.LIMIT)


@pytest.mark.parametrize("name", ranks.CASES)
def test_two_ranks_are_one_batch(name: str, two_ranks: list[dict[str, Tensor]]) -> None:
    """Whatever path each of them takes, and where one has no sample or no value."""
    case, dy = ranks.whole(name)
    found = [
        {key: rank[f"{name}.{key}"] for key in (*truth.NAMES, "running_mean", "running_var")} for rank in two_ranks
    ]
    joined = [torch.cat([rank[key] for rank in found]) for key in ("y", "dx")]
    joined += [sum(rank[key] for rank in found) for key in ("dweight", "dbias")]
    truth.compare([*joined, torch.cat([rank["dresidual"] for rank in found])], truth.truths(case, dy))
    alone = nk.BatchNorm2d(case.x.shape[1], EPS, MOMENTUM)
    with nk.backend("composed"):
        alone(case.x, mask=case.mask)
    for rank in found:
        torch.testing.assert_close(rank["running_mean"], alone.running_mean)
        torch.testing.assert_close(rank["running_var"], alone.running_var)
