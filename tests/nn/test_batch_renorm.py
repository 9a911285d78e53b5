"""Batch renormalization: the paper's formula, its clock, and the state it shares with batch norm."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit import reference
from tests.cases import EPS, LAYOUTS, MOMENTUM, affine, gaussian, generator, random_mask
from tests.functional.norms import assert_layout_kept
from tests.tolerances import assert_equal64, assert_same

RUN = torch.tensor([2.0, -1.0, 9.0]).double(), torch.tensor([1.1, 0.05, 30.0]).double()  # far enough off to clip


@pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("r_max", "d_max"), [(1.0, 0.0), (3.0, 5.0), (1.5, 0.5), (1e6, 1e6)], ids=str)
@pytest.mark.parametrize("space", [(), (5,), (3, 4)], ids=["nc", "ncl", "nchw"])
def test_outputs_and_gradients_are_the_references(
    space: tuple[int, ...], r_max: float, d_max: float, with_mask: bool
) -> None:
    g, shape = generator(4), (7, 3, *space)
    x, dy, (weight, bias) = gaussian(shape, g, mean=2.0), gaussian(shape, g), affine(3, g)
    mask = random_mask(shape, g) if with_mask else None
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    running = [v.clone() for v in RUN]
    y = nk.functional.batch_renorm(
        leaves[0], *running, *leaves[1:], True, MOMENTUM, EPS, r_max=r_max, d_max=d_max, mask=mask
    )
    got = (y, *torch.autograd.grad(y, leaves, dy))
    expected, mean, var = reference.batch_renorm(x, *RUN, weight, bias, EPS, r_max, d_max, mask)
    truth = (expected, *reference.batch_renorm_backward(dy, x, *RUN, weight, EPS, r_max, d_max, mask))
    for name, a, b in zip(("y", "dx", "dweight", "dbias"), got, truth, strict=True):
        assert_equal64(a, b, name)
    m = 7 * 5 ** len(space) if mask is None else int(mask.sum())
    m = x[:, 0].numel() if mask is None else m
    assert_equal64(running[0], (1 - MOMENTUM) * RUN[0] + MOMENTUM * mean)
    assert_equal64(running[1], (1 - MOMENTUM) * RUN[1] + MOMENTUM * var * m / (m - 1))


def test_training_without_limits_is_evaluation() -> None:
    layer = nk.BatchRenorm1d(3, EPS, r_max=1e6, d_max=1e6, warm_up=(0, 0, 0), dtype=torch.float64)
    x = gaussian((6, 3), generator(0), std=0.2)
    expected = copy.deepcopy(layer).eval()(x)
    assert_equal64(layer(x), expected)


def test_until_the_warm_up_ends_it_is_batch_norm() -> None:
    renorm = nk.BatchRenorm1d(3, EPS, MOMENTUM, warm_up=(3, 5, 4)).double()
    batch = nk.BatchNorm1d(3, EPS, MOMENTUM).double()
    g = generator(2)
    for step in range(6):
        x = gaussian((6, 3), g, mean=4.0, std=3.0)
        a, b = renorm(x), batch(x)
        if step <= 3:
            assert_equal64(a, b)
        else:
            assert (a - b).abs().max() > 0.1


@pytest.mark.parametrize("step", [0, 4_999, 5_000, 15_000, 25_000, 40_000, 10**7])
def test_the_clock_is_the_papers(step: int) -> None:
    layer = nk.BatchRenorm2d(3)
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.fill_(step)
    r_max, d_max = layer.limits()
    expected = reference.limits(step)
    assert float(r_max) == pytest.approx(expected[0], rel=1e-12)
    assert float(d_max) == pytest.approx(expected[1], rel=1e-12)


def test_the_clock_comes_back_with_the_state() -> None:
    options: dict[str, Any] = {"r_max": 1.5, "d_max": 0.25, "warm_up": (2, 6, 4)}
    first = nk.BatchRenorm1d(3, **options)
    for _ in range(5):
        first(torch.randn(8, 3))
    second = nk.BatchRenorm1d(3, **options)
    second.load_state_dict(first.state_dict())
    assert [float(v) for v in second.limits()] == [float(v) for v in first.limits()] == [1.375, 0.25]
    second.num_batches_tracked = None  # no clock: the limits at the end
    assert second.limits() == (1.5, 0.25)


def test_the_statistics_used_are_those_from_before_the_batch() -> None:
    """momentum=1 replaces them by the batch's: used after the move, r would be 1 and d 0."""
    layer = nk.BatchRenorm1d(1, momentum=1.0, warm_up=(0, 0, 0), dtype=torch.float64)
    x = gaussian((50, 1), generator(1), mean=2.0, std=2.0)
    y = layer(x)
    assert y.mean().item() == pytest.approx(x.mean().item(), rel=1e-4)  # running: mean 0, var 1


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_layout_and_half_precision_are_kept(layout: str) -> None:
    x = LAYOUTS[layout](gaussian((4, 3, 5, 5), generator(1)).bfloat16())
    layer = nk.BatchRenorm2d(3, EPS, warm_up=(0, 0, 0)).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    assert_layout_kept(y, x)
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32


@pytest.mark.parametrize("with_mask", [False, True], ids=["all", "masked"])
def test_a_compiled_backward_uses_the_correction_of_its_forward(with_mask: bool) -> None:
    """The graph overwrites the running statistics; a backward that recomputes r and d from them would be wrong."""
    x, mask = gaussian((6, 3, 5), generator(1), mean=0.5), random_mask((6, 3, 5), generator(2))
    eager = nk.BatchRenorm1d(3, EPS, momentum=0.5, r_max=1.1, d_max=0.3, warm_up=(0, 0, 0)).double()
    compiled = copy.deepcopy(eager)
    gradients = []
    for layer in (eager, torch.compile(compiled, backend="aot_eager", fullgraph=True)):
        for _ in range(2):
            leaf = x.clone().requires_grad_()
            (layer(leaf, mask=mask if with_mask else None) ** 3).sum().backward()
        gradients.append(leaf.grad)
    assert_equal64(gradients[1], gradients[0])
    for name, value in compiled.state_dict().items():
        assert_equal64(value.double(), eager.state_dict()[name].double(), name)


def test_r_and_d_are_constants_for_every_derivative() -> None:
    running = [v.clone() for v in RUN]
    x = gaussian((4, 3, 2), generator(3)).requires_grad_()

    def held(x: Tensor) -> Tensor:
        _, mean, var = reference.batch_norm(gaussian((4, 3, 2), generator(3)), None, None, EPS)
        r, d = reference.correction(mean, var, *RUN, EPS, 3.0, 5.0)
        return reference.batch_norm(x, r, d, EPS)[0]

    def ours(x: Tensor) -> Tensor:
        return nk.functional.batch_renorm(x, *(v.clone() for v in running), None, None, True, MOMENTUM, EPS)

    for norm in (ours, held):
        (first,) = torch.autograd.grad((norm(x) ** 3).sum(), x, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), x)[0]
        if norm is ours:
            got = second
    assert_equal64(got, second, factor=1e6)  # two derivatives, each dividing by sigma


def test_copies_start_without_memory_and_pickle() -> None:
    layer = nk.BatchRenorm1d(3)
    layer(torch.randn(4, 3))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert len(twin._recent._entries) == 0
        for name, value in layer.state_dict().items():
            assert_same(twin.state_dict()[name].double(), value.double(), name)
    assert len(layer._recent._entries) == 1


def test_evaluation_is_batch_norm_and_loads_its_state() -> None:
    renorm, batch = nk.BatchRenorm2d(3, EPS, warm_up=(0, 0, 0)), nn.BatchNorm2d(3, EPS)
    batch(torch.randn(6, 3, 4, 4))
    renorm.load_state_dict(batch.state_dict())
    x = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(renorm.eval()(x), batch.eval()(x))
    assert isinstance(renorm, nn.BatchNorm2d)


def test_what_it_refuses_and_how_it_shows_itself() -> None:
    with pytest.raises(ValueError, match=r"r_max must be 1 or more .* got 0.5"):
        nk.BatchRenorm1d(3, r_max=0.5)
    with pytest.raises(ValueError, match=r"d_max must be 0 or more .* got -1"):
        nk.BatchRenorm1d(3, d_max=-1.0)
    with pytest.raises(ValueError, match=r"warm_up must be \(start, r_end, d_end\)"):
        nk.BatchRenorm1d(3, warm_up=(10, 5, 20))
    with pytest.raises(ValueError, match="cannot do without: leave track_running_stats=True"):
        nk.BatchRenorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="give running_mean and running_var"):
        nk.functional.batch_renorm(torch.randn(4, 3), None, None, training=True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nk.BatchRenorm1d(3)(torch.zeros(1, 3))
    assert repr(nk.BatchRenorm1d(3)).endswith("track_running_stats=True, r_max=3.0, d_max=5.0)")
    assert "warm_up=(0, 1, 1)" in repr(nk.BatchRenorm1d(3, warm_up=(0, 1, 1)))


def test_a_checkpoint_recomputes_a_batch_without_channels() -> None:
    layer = nk.BatchRenorm1d(0, eps=2e-3, warm_up=(0, 0, 0))
    x = torch.empty(7, 0, 3, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
