"""Ghost batch norm: the reference's slices all at once, and running statistics that move by the whole batch."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from normkit.contract import output_bound, unit_roundoff
from normkit.functional.ghost_batch_norm import slice_sizes
from tests.cases import EPS, LAYOUTS, MOMENTUM, affine, gaussian, generator, random_mask
from tests.functional.norms import assert_layout_kept
from tests.kernels.native_isa import needs_native
from tests.tolerances import assert_equal64, assert_same, assert_within

BATCHES = {"even": (8, 4), "two_lengths": (11, 4), "odd_pairs": (5, 2), "smaller": (3, 32), "of_one": (4, 1)}
batches = pytest.mark.parametrize(("n", "virtual"), BATCHES.values(), ids=BATCHES)


@batches
@pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("space", [(), (5,), (3, 4), (2, 3, 2)], ids=["nc", "ncl", "nchw", "ncdhw"])
def test_outputs_and_gradients_are_the_references(
    space: tuple[int, ...], with_mask: bool, n: int, virtual: int
) -> None:
    g, shape = generator(4), (n, 3, *space)
    x, dy, (weight, bias) = gaussian(shape, g, mean=2.0), gaussian(shape, g), affine(3, g)
    mask = random_mask(shape, g) if with_mask else None
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = nk.functional.ghost_batch_norm(
        leaves[0], None, None, *leaves[1:], True, eps=EPS, virtual_batch_size=virtual, mask=mask
    )
    got = (y, *torch.autograd.grad(y, leaves, dy))
    expected = (
        reference.ghost_batch_norm(x, weight, bias, EPS, virtual, mask)[0],
        *reference.ghost_batch_norm_backward(dy, x, weight, EPS, virtual, mask),
    )
    for name, a, b in zip(("y", "dx", "dweight", "dbias"), got, expected, strict=True):
        assert_equal64(a, b, name)


@pytest.mark.parametrize("n", range(71))
def test_the_slices_are_the_references(n: int) -> None:
    for virtual in range(1, 40):
        assert slice_sizes(n, virtual) == reference.slice_sizes(n, virtual)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_float32_at_a_large_mean_holds_the_contract_and_the_layout(layout: str) -> None:
    x = LAYOUTS[layout](gaussian((11, 5, 4, 3), generator(1), mean=1e4).float())
    y = nk.GhostBatchNorm2d(5, EPS, virtual_batch_size=4)(x)
    y64, _, _ = reference.ghost_batch_norm(x.double(), None, None, EPS, 4)
    assert_within(y, y64, output_bound(y64, 1.0, 0.0, unit_roundoff(torch.float32)))
    assert_layout_kept(y, x)


@batches
@pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("momentum", [MOMENTUM, None], ids=str)
def test_the_running_statistics_are_those_of_batch_norm(
    momentum: float | None, with_mask: bool, n: int, virtual: int
) -> None:
    ghost = nk.GhostBatchNorm1d(3, momentum=momentum, virtual_batch_size=virtual, dtype=torch.float64)
    whole = nk.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    g = generator(5)
    for _ in range(3):
        x = gaussian((n, 3, 5), g, mean=1.0)
        mask = random_mask((n, 3, 5), g) if with_mask else None
        ghost(x, mask=mask)
        whole(x, mask=mask)
    for name, value in ghost.state_dict().items():
        assert_equal64(value.double(), whole.state_dict()[name].double(), name)


def test_evaluation_is_batch_norm_and_loads_its_state() -> None:
    ghost, batch = nk.GhostBatchNorm2d(3, EPS, virtual_batch_size=2), nn.BatchNorm2d(3, EPS)
    batch(torch.randn(6, 3, 4, 4))
    ghost.load_state_dict(batch.state_dict())
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(ghost.eval()(x), batch.eval()(x))
    assert isinstance(ghost, nn.BatchNorm2d)


def test_a_slice_does_not_see_the_others() -> None:
    layer, x = nk.GhostBatchNorm1d(3, EPS, virtual_batch_size=4), torch.randn(8, 3)
    before = layer(x)[:4].detach()
    x[4:] *= 100
    assert_same(layer(x)[:4].detach(), before)


def test_residual_activation_and_second_derivatives() -> None:
    x, residual = (gaussian((5, 1, 2), generator(i)).requires_grad_() for i in (1, 2))

    def norm(x: Tensor, residual: Tensor) -> Tensor:
        return nk.functional.ghost_batch_norm(
            x, None, None, training=True, eps=EPS, virtual_batch_size=2, residual=residual, activation="silu"
        )

    torch.autograd.gradcheck(norm, (x, residual))
    torch.autograd.gradgradcheck(norm, (x, residual))


@needs_native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("activation", [None, "relu", "silu", "gelu"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_the_native_slices_are_the_composed_ones(layout: str, activation: str | None, with_residual: bool) -> None:
    g = generator(7)
    x, r, dy = (LAYOUTS[layout](gaussian((11, 5, 4, 3), g)).requires_grad_() for _ in range(3))
    found: dict[str, list[Tensor]] = {}
    for path in ("native", "composed"):
        layer = nk.GhostBatchNorm2d(5, EPS, MOMENTUM, virtual_batch_size=4, activation=activation, dtype=torch.float64)
        torch.nn.init.constant_(layer.weight, 1.5)
        with nk.backend(path):
            y = layer(x, residual=r if with_residual else None)
        leaves = [x, layer.weight, layer.bias, *([r] if with_residual else [])]
        found[path] = [y, *torch.autograd.grad(y, leaves, dy), layer.running_mean, layer.running_var]
    for native_result, composed_result in zip(*found.values(), strict=True):
        assert_equal64(native_result, composed_result)


def test_an_empty_batch_and_a_batch_of_one_row() -> None:
    layer = nk.GhostBatchNorm1d(3)
    assert layer(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.zeros(1, 3))


def test_what_it_refuses_and_how_it_shows_itself() -> None:
    with pytest.raises(ValueError, match="virtual_batch_size must be 1 or more, got 0"):
        nk.GhostBatchNorm1d(3, virtual_batch_size=0)
    with pytest.raises(ValueError, match=r"expected 4D input \(got 2D input\)"):
        nk.GhostBatchNorm2d(3)(torch.zeros(2, 3))
    layer = nk.GhostBatchNorm1d(3, virtual_batch_size=16, activation="relu")
    assert repr(layer).endswith("activation='relu', virtual_batch_size=16)")
    assert pickle.loads(pickle.dumps(layer)).virtual_batch_size == 16


@needs_native
def test_no_native_kernel_takes_its_mask() -> None:
    with pytest.raises(RuntimeError, match="cannot serve this call: a mask is given"), nk.backend("native"):
        nk.GhostBatchNorm1d(3, virtual_batch_size=2)(torch.randn(4, 3), mask=torch.tensor([True] * 3 + [False]))
