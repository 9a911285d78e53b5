"""Masks in Triton's kernels under its interpreter, against float64; see `batch_norm_cases.py`.

NaN and Inf stand under every mask, in the input, the residual and the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit._activation import NONE, resolve
from normkit._operands import Needs, Operands
from normkit.functional import choose as _choose
from normkit.kernels import triton
from normkit.kernels.triton import _tile_plan
from tests.cases import EPS, MOMENTUM, gaussian, generator, random_mask
from tests.kernels.interpreted import batch_norm_cases, group_norm_cases, truth
from tests.kernels.interpreted.batch_norm_cases import cut as cut
from tests.kernels.interpreted.batch_norm_cases import drawn
from tests.kernels.interpreted.traffic import counted
from tests.tolerances import assert_within

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")  # numpy, which interprets
_batch_norm = import_module("normkit.functional.batch_norm")  # the name is its function's too
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def spoil(mask: Tensor, *tensors: Tensor) -> None:
    """NaN under the mask; Inf in the first sample. mask: (N, *)."""
    hidden = ~mask.unsqueeze(1)
    for tensor in tensors:
        tensor.masked_fill_(hidden, torch.nan)
        tensor[:1].masked_fill_(hidden[:1], torch.inf)


def masked(case: Any, dy: Tensor, mask: Tensor | None = None, seed: int = 5) -> tuple[Any, Tensor]:
    """The case under a mask, a drawn one or this, and what it hides spoiled."""
    case.mask = random_mask(case.x.shape, generator(seed)) if mask is None else mask
    spoil(case.mask, case.x, dy, *[t for t in [case.residual] if t is not None])
    return case, dy


# --- batch norm

# Drawn from the grid of shapes, dtypes, layouts, activations, residual or not, so that each meets each other once.
DRAWN = [
    ((5, 67), F32, "contiguous", "relu", True), ((33, 1), BF16, "contiguous", None, True),
    ((3, 5, 11), F32, "contiguous", None, False), ((3, 5, 11), F32, "channels_last", "silu", True),
    ((4, 6, 5, 7), F32, "channels_last", "relu", True), ((4, 2, 5, 7), F16, "contiguous", "relu", True),
    ((4, 9, 4, 8), BF16, "channels_last", "leaky_relu", True), ((4, 2, 3, 7), F32, "transposed", "sigmoid", True),
    ((4, 2, 5, 7), F32, "strided", None, True), ((7, 4, 1), F32, "contiguous", "gelu", False),
    ((1, 8, 3, 3), BF16, "channels_last", None, False), ((2, 4, 3, 2, 5), F32, "channels_last", "relu6", False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "dtype", "layout", "activation", "residual", "cut"), drawn(DRAWN), ids=str, indirect=["cut"]
)
def test_batch_norm_is_that_of_the_real_values(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, activation: str | None, residual: bool, cut: str
) -> None:
    case, dy = batch_norm_cases.make(shape, dtype, layout, activation=activation, residual=residual)
    _, gradients = truth.check(*masked(case, dy))
    hidden = ~case.mask.unsqueeze(1).expand(shape)
    assert all(gradient[hidden].eq(0).all() for gradient in (gradients[0], gradients[3]) if gradient is not None)


@pytest.mark.parametrize(
    ("layout", "activation", "cut"), drawn([("contiguous", "relu"), ("channels_last", None)]), indirect=["cut"]
)
def test_batch_norm_in_evaluation(layout: str, activation: str | None, cut: str) -> None:
    case, dy = batch_norm_cases.make((4, 9, 5, 7), layout=layout, activation=activation, residual=True)
    case.mean, case.var = torch.linspace(-1, 1, 9), torch.linspace(0.5, 2, 9)
    truth.check(*masked(case, dy))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_batch_norm_of_every_tail(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost axis of each eleventh size up to 70, in one pass and in tiles by turns; padded at the end."""
    for size in range(2, 71, 11):
        monkeypatch.setattr(_tile_plan, "TILE", 128 if size % 2 else 4096)
        monkeypatch.setattr(_tile_plan, "ON_CHIP", 8 if size % 2 else 8192)
        shape = (3, 2, size) if layout == "contiguous" else (3, size, 5)
        mask = nk.mask_from_lengths([shape[2], 0, shape[2] // 2], shape[2])
        case, dy = batch_norm_cases.make(shape, layout=layout, activation="relu", residual=True, seed=size)
        truth.check(*masked(case, dy, mask))


@pytest.mark.parametrize("mean", [pytest.param(-1e4, marks=pytest.mark.nightly), 1e6])
def test_tiles_without_a_value_lose_nothing_at_a_mean_far_beyond_the_deviation(mean: float, cut: str) -> None:
    """The first tiles are empty, some in between, and the last."""
    mask = torch.zeros(9, 5, 7, dtype=torch.bool)
    mask[4], mask[6, :2], mask[7, 4, 6] = True, True, True
    for layout in ("contiguous", "channels_last"):
        case, dy = batch_norm_cases.make((9, 2, 5, 7), layout=layout, mean=mean, activation="relu", residual=True)
        truth.check(*masked(case, dy, mask))


def test_a_mask_that_all_samples_share_and_one_of_ones(cut: str) -> None:
    case, dy = batch_norm_cases.make((4, 2, 5, 7), activation="silu", residual=True)
    plain = truth.run(case, dy)
    case.mask = torch.ones(4, 1, 5, 7, dtype=torch.bool)
    for actual, expected in zip(truth.run(case, dy)[1], plain[1], strict=True):
        assert_within(actual, expected, 2.0**-20 * (1 + expected.abs()))
    shared = random_mask((1, 2, 5, 7), generator(3)).unsqueeze(1)
    case.mask = shared
    found = truth.run(case, dy)
    case.mask = shared.squeeze(1).expand(4, 5, 7)
    y, gradients = truth.check(case, dy)
    assert torch.equal(found[0], y)
    assert all(torch.equal(a, b) for a, b in zip(found[1], gradients, strict=True))


@pytest.mark.parametrize(("real", "eps"), [(0, 0.0), (1, EPS)])
def test_no_value_and_a_single_one(real: int, eps: float, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python may not look at the mask, as on a GPU. A single value lies at its mean: y is the bias."""
    monkeypatch.setattr(_batch_norm, "may_look", lambda tensor: False)
    case, dy = batch_norm_cases.make((4, 6, 5, 7), activation="leaky_relu", residual=True)
    mask = torch.zeros(4, 5, 7, dtype=torch.bool)
    mask[2, 3, 4] = real == 1
    masked(case, dy, mask)
    layer = nk.BatchNorm2d(6, max(eps, 1e-30), MOMENTUM, activation="leaky_relu")
    layer.bias.data = case.bias.clone()
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x, residual = (t.detach().requires_grad_() for t in (case.x, case.residual))
    with nk.backend("triton"):
        y = layer(x, residual=residual, mask=mask)
        y.backward(dy)
    hidden = ~mask.unsqueeze(1).expand(case.x.shape)
    assert y[hidden].eq(0).all()
    assert x.grad.isfinite().all()
    assert residual.grad[hidden].eq(0).all()
    assert layer.weight.grad.abs().max() < 1e-4
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    if real:
        z = case.bias + case.residual[2, :, 3, 4]
        torch.testing.assert_close(y[2, :, 3, 4], torch.nn.functional.leaky_relu(z))
        torch.testing.assert_close(layer.bias.grad, residual.grad[2, :, 3, 4])


def test_a_single_value_that_python_sees_is_refused_as_elsewhere() -> None:
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1, 2] = True
    with nk.backend("triton"), pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nk.BatchNorm1d(3)(torch.ones(4, 3, 5), mask=mask)


@pytest.mark.parametrize("momentum", [MOMENTUM, None], ids=str)
def test_running_statistics_move_by_the_real_values(momentum: float | None, cut: str) -> None:
    """In the kernels, and in Python where they may not (buffers with gaps)."""
    layer, alone = nk.BatchNorm2d(6, momentum=momentum), nk.BatchNorm1d(6, momentum=momentum)
    gaps = torch.zeros(12)[::2], torch.ones(12)[::2]
    for seed in range(2):
        case, _ = masked(*batch_norm_cases.make((4, 6, 5, 7), seed=seed, mean=3.0), seed=seed)
        with nk.backend("triton"):
            layer(case.x, mask=case.mask)
            if momentum is not None:
                nk.functional.batch_norm(case.x, *gaps, training=True, momentum=momentum, mask=case.mask)
        alone(case.x.movedim(1, -1)[case.mask])
    torch.testing.assert_close(dict(layer.named_buffers()), dict(alone.named_buffers()))
    if momentum is not None:
        torch.testing.assert_close(gaps, (alone.running_mean, alone.running_var))


def test_no_value_of_a_tensor_is_read_by_python(cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where that would wait."""

    def read(*arguments: object) -> Any:
        raise AssertionError("a value was read")

    monkeypatch.setattr(_choose, "may_look", lambda tensor: False)
    monkeypatch.setattr(_batch_norm, "may_look", lambda tensor: False)
    case, dy = masked(*batch_norm_cases.make((4, 6, 5, 7), activation="relu", residual=True))
    group, _ = masked(*group_norm_cases.make((4, 6, 5, 7), 3, activation="relu", residual=True))
    layer = nk.BatchNorm2d(6, momentum=None)
    x = case.x.detach().requires_grad_()
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
            patched.setattr(Tensor, name, read)
        with nk.backend("triton"):
            layer(x, residual=case.residual, mask=case.mask).backward(dy)
            group.call(x, group.weight, group.bias, group.residual).backward(dy)
    assert layer.num_batches_tracked == 1


def test_second_derivatives_are_those_of_the_operations(cut: str) -> None:
    case, dy = masked(*batch_norm_cases.make((4, 3, 9), activation="relu", residual=True))

    def second(path: str) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in case.tensors()]
        with nk.backend(path):
            y = nk.functional.batch_norm(
                leaves[0], None, None, *leaves[1:3], True, eps=EPS, residual=leaves[3], activation="relu",
                mask=case.mask,
            )  # fmt: skip
            (dx,) = torch.autograd.grad(y, leaves[0], dy, create_graph=True)
            return torch.autograd.grad(dx.square().sum(), leaves[:2])

    for actual, expected in zip(second("triton"), second("composed"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_activation_that_no_kernel_fuses_follows_under_the_mask(cut: str) -> None:
    case, dy = masked(*batch_norm_cases.make((4, 3, 9), residual=True))
    found = []
    for path in ("triton", "composed"):
        x = case.x.detach().requires_grad_()
        with nk.backend(path):
            y = nk.functional.batch_norm(
                x, None, None, training=True, residual=case.residual, activation="softplus", mask=case.mask
            )
            found.append((y.detach(), *torch.autograd.grad(y, x, dy)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_bytes_moved_are_those_without_a_mask_and_the_mask_once_a_sweep(cut: str) -> None:
    """A mask has a byte a position. In tiles its programs read it for every block of channels."""
    case, dy = batch_norm_cases.make((4, 4, 6, 8), activation="relu", residual=True)
    mask = random_mask(case.x.shape, generator(1)).unsqueeze(1)
    size, sweeps = case.x.nbytes, 1 if cut == "one pass" else 2
    blocks = _tile_plan.plan_tiles(case.x).grid[0]
    operands = Operands(*case.tensors(), mask)
    large = {"x": case.x, "residual": case.residual, "mask": mask}
    with counted(large) as (read, _):
        _, saved = triton.batch_norm_forward(operands, resolve("relu"), EPS, save=True)
    assert [read[name] for name in large] == [sweeps * size, size, sweeps * blocks * mask.nbytes]
    kept = operands._replace(residual=None)
    with counted({"x": case.x, "dy": dy, "mask": mask}) as (read, _):
        triton.batch_norm_backward(dy, kept, saved, resolve("relu"), Needs(True, True, True, True), training=True)
    assert [read[name] for name in ("x", "dy", "mask")] == [sweeps * size, sweeps * size, sweeps * blocks * mask.nbytes]


# --- group and instance norm

DRAWN_GROUPS = [
    ((3, 9, 11), 3, F32, "contiguous", "silu", True), ((3, 9, 11), 1, BF16, "channels_last", None, True),
    ((4, 6, 3, 7), 2, F32, "channels_last", "silu", True), ((4, 3, 5, 7), 3, F16, "contiguous", "relu", True),
    ((4, 4, 3, 7), 2, F32, "strided", None, False), ((2, 8, 3, 5), 2, F32, "channels_last", "relu", False),
    ((2, 4, 3, 2, 5), 1, BF16, "contiguous", "gelu", False),
]  # fmt: skip


@pytest.fixture
def cut_groups(cut: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `group_norm_cases` cuts small tensors."""
    if cut == "tiles":
        monkeypatch.setattr(_tile_plan, "TILE", 64)
        monkeypatch.setattr(_tile_plan, "ON_CHIP", 0)
        monkeypatch.setattr(_tile_plan, "PROGRAMS", 12)
        monkeypatch.setattr(group_norm_cases._group_tile_plan, "MERGED", 32)
    return cut


def sparse(shape: tuple[int, ...]) -> Tensor:
    """A drawn mask (N, *) in which the last sample has one real value, and the one before none."""
    mask = random_mask(shape, generator(4))
    mask[-2:] = False
    mask[-1].view(-1)[-1] = True
    return mask


@pytest.mark.parametrize(
    ("shape", "groups", "dtype", "layout", "activation", "residual", "cut"), drawn(DRAWN_GROUPS), ids=str,
    indirect=["cut"],
)  # fmt: skip
def test_group_norm_is_that_of_the_real_values(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype, layout: str, activation: str | None, residual: bool,
    cut_groups: str,
) -> None:  # fmt: skip
    case, dy = group_norm_cases.make(shape, groups, dtype, layout, activation=activation, residual=residual)
    _, gradients = group_norm_cases.check(*masked(case, dy, sparse(shape) if shape[0] > 2 else None))
    hidden = ~case.mask.unsqueeze(1).expand(shape)
    assert all(gradient[hidden].eq(0).all() for gradient in (gradients[0], gradients[3]) if gradient is not None)


def test_group_norm_at_a_mean_far_beyond_the_deviation(cut_groups: str) -> None:
    for layout in ("contiguous", "channels_last"):
        case, dy = group_norm_cases.make((2, 6, 5, 9), 2, layout=layout, mean=1e6, activation="silu", residual=True)
        group_norm_cases.check(*masked(case, dy))


def test_a_sample_without_a_value_has_no_nan_where_eps_is_0(cut_groups: str) -> None:
    case, dy = group_norm_cases.make((3, 6, 7), 2, residual=True)
    masked(case, dy, nk.mask_from_lengths([5, 0, 7], 7))
    leaves = [t.detach().requires_grad_() for t in case.tensors()]
    with nk.backend("triton"):
        y = nk.functional.group_norm(leaves[0], 2, *leaves[1:3], 0.0, residual=leaves[3], mask=case.mask)
        found = torch.autograd.grad(y, leaves, dy)
    assert all(t.isfinite().all() for t in (y, *found))
    assert y[1].eq(0).all()
    assert found[0][1].eq(0).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_instance_norm_moves_by_samples_with_two_values_or_more(layout: str, cut_groups: str) -> None:
    case, dy = group_norm_cases.make((4, 3, 3, 7), 3, layout=layout, mean=3.0, activation="relu")
    masked(case, dy, sparse((4, 3, 3, 7)))
    found = []
    for path in ("triton", "composed"):
        layer = nk.InstanceNorm2d(3, EPS, MOMENTUM, affine=True, track_running_stats=True, activation="relu")
        x = case.x.detach().requires_grad_()
        with nk.backend(path):
            y = layer(x, mask=case.mask)
            y.backward(dy)
        found.append({"y": y.detach(), "dx": x.grad, **dict(layer.named_buffers())})
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert found[0]["y"].stride() == case.x.stride()


def test_recomputed_outputs_are_the_same(cut: str) -> None:
    case, dy = batch_norm_cases.make((2, 4, 3, 7), activation="relu", residual=True)
    mask, conv = random_mask((2, 4, 3, 7), generator(2)), torch.ones(4, 4, 1, 1, requires_grad=True)
    makes: list[Callable[[], torch.nn.Module]] = [
        lambda: nk.BatchNorm2d(4, EPS, activation="relu"), lambda: nk.GroupNorm(2, 4, EPS, activation="relu"),
    ]  # fmt: skip
    for make in makes:
        found = []
        for context in (nk.recompute_outputs(), nk.backend("triton")):
            layer, (x, residual) = make(), (t.detach().requires_grad_() for t in (case.x, case.residual))
            with nk.backend("triton"), context:
                y = torch.nn.functional.conv2d(layer(x, residual=residual, mask=mask), conv)
                found.append(torch.autograd.grad(y, [x, residual, conv, layer.weight], dy))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_statistics_at_a_mean_far_beyond_the_deviation_are_those_of_the_real_values(cut: str) -> None:
    x = gaussian((8, 3, 37), generator(1), 1e5).float()
    mask = random_mask((8, 3, 37), generator(2))
    spoil(mask, x)
    _, saved = triton.batch_norm_forward(Operands(x, mask=mask.unsqueeze(1)), NONE, EPS, save=True)
    real = x.movedim(1, -1)[mask].double()
    assert_within(saved.stats[0].double() + saved.stats[3], real.mean(0), 2.0**-20 * real.std(0))
    assert_within(saved.stats[1], real.var(0, correction=0), 2.0**-20 * real.var(0))
    assert saved.stats[4].tolist() == [mask.sum()] * 3
