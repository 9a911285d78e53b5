"""The running statistics of training: how far they move, what moves nothing, and that they stay float32."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference
from tests.cases import EPS, MOMENTUM, gaussian, generator
from tests.functional.norms import EXACT_BACKENDS
from tests.tolerances import assert_same, assert_within

STEPS = [0, 1, 2, 100]


def batches(count: int, shape: tuple[int, ...] = (6, 3, 4), mean: float = 2.0) -> list[Tensor]:
    g = generator(11)
    return [gaussian(shape, g, mean=mean, std=1.5).float() for _ in range(count)]


def statistics(layer: nn.Module) -> tuple[Tensor, Tensor, int]:
    mean, var, counted = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    assert isinstance(counted, Tensor)
    return mean.clone(), var.clone(), int(counted)


@pytest.mark.parametrize("backend", [*EXACT_BACKENDS, "aten"])
@pytest.mark.parametrize("momentum", [MOMENTUM, 1.0, 0.0, None], ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_the_value_after_so_many_steps(steps: int, momentum: float | None, backend: str) -> None:
    layer, data = nk.BatchNorm1d(3, momentum=momentum), batches(steps)
    with nk.backend(backend):
        for x in data:
            layer(x)
    mean, var, counted = statistics(layer)
    news = [(x.double().mean((0, 2)), x.double().var((0, 2), correction=1)) for x in data]
    if momentum is None:
        expected = [torch.stack(v).mean(0) for v in zip(*news, strict=True)] or [torch.zeros(3), torch.ones(3)]
    else:
        starts = torch.zeros(3).double(), torch.ones(3).double()
        values = list(zip(*news, strict=True)) or [(), ()]
        expected = [
            reference.running.exponential_closed_form(start, list(new), momentum)
            for start, new in zip(starts, values, strict=True)
        ]
    # one float32 rounding a step of a value below 8; PyTorch's kernel also hands out a float32 rstd
    room = (steps + 1) * 8 * 2**-24 * (8 if backend == "aten" else 1)
    assert_within(mean, expected[0], room, "mean")
    assert_within(var, expected[1], room, "var")
    assert counted == steps


@pytest.mark.parametrize("momentum", [MOMENTUM, None], ids=str)
def test_torch_agrees_where_torch_is_right(momentum: float | None) -> None:
    ours, theirs = nk.BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    for x in batches(20):
        ours(x)
        theirs(x)
    for a, b in zip(statistics(ours), statistics(theirs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
def test_buffers_are_moved_in_place_and_their_version_counts(backend: str) -> None:
    layer = nk.BatchNorm1d(3)
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    before = mean._version, var._version
    with nk.backend(backend):
        layer(batches(1)[0])
    assert layer.running_mean is mean
    assert layer.running_var is var
    assert mean._version > before[0]
    assert var._version > before[1]


UNFIT: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda x: x.index_fill(0, torch.tensor([1]), float("nan")),
    "inf": lambda x: x.index_fill(0, torch.tensor([1]), float("inf")),
    "variance_overflows_float32": lambda x: x * 1e25,
}


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
@pytest.mark.parametrize("momentum", [MOMENTUM, None, 0.0, 1.0], ids=str)
@pytest.mark.parametrize("spoil", UNFIT.values(), ids=UNFIT)
def test_a_batch_that_is_not_finite_moves_nothing_and_warns(
    spoil: Callable[[Tensor], Tensor], momentum: float | None, backend: str
) -> None:
    layer = nk.BatchNorm1d(3, momentum=momentum)
    first, second = batches(2)
    with nk.backend(backend):
        layer(first)
        before = statistics(layer)
        with pytest.warns(RuntimeWarning, match="its running statistics were not moved"):
            layer(spoil(second))
        for a, b in zip(statistics(layer)[:2], before[:2], strict=True):
            assert_same(a, b)
        assert statistics(layer)[2] == 1
        layer(second)  # and the next good batch counts
    assert statistics(layer)[2] == 2


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (4, 3, 0)], ids=str)
def test_an_empty_batch_moves_nothing_and_is_not_counted(shape: tuple[int, ...], backend: str) -> None:
    layer = nk.BatchNorm1d(3)
    with nk.backend(backend):
        layer(torch.zeros(shape))
    mean, var, counted = statistics(layer)
    assert (mean == 0).all()
    assert (var == 1).all()
    assert counted == 0


def test_one_value_a_channel_raises_or_uses_the_running_statistics() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nk.BatchNorm1d(3)(x)
    layer = nk.BatchNorm1d(3, EPS, MOMENTUM, activation=nn.LeakyReLU(0.3), small_batch="running")
    for batch in batches(3):
        layer(batch)
    before = statistics(layer)
    y = layer(x)
    assert (y < 0).any()
    assert_same(y.detach(), copy.deepcopy(layer).eval()(x).detach())
    for a, b in zip(statistics(layer)[:2], before[:2], strict=True):
        assert_same(a, b)
    assert statistics(layer)[2] == 3
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # nothing to fall back on
        nk.BatchNorm1d(3, small_batch="running", track_running_stats=False)(x)


def test_track_running_stats_switched_off_later_stops_the_update_and_keeps_evaluation() -> None:
    layer = nk.BatchNorm1d(3, EPS, MOMENTUM)
    layer(batches(1)[0])
    before, layer.track_running_stats = statistics(layer), False
    layer(batches(2)[1])
    assert_same(statistics(layer)[0], before[0])
    x = batches(1)[0]
    torch.testing.assert_close(layer.eval()(x), nn.functional.batch_norm(x, before[0], before[1], eps=EPS))


@pytest.mark.parametrize("momentum", [MOMENTUM, None], ids=str)
@pytest.mark.parametrize("name", ["BatchNorm1d", "InstanceNorm1d"])
def test_without_a_counter_a_cumulative_average_stays_and_another_moves(name: str, momentum: float | None) -> None:
    """As torch, which looks for the counter too: an old state_dict has none."""
    layer, theirs = (getattr(m, name)(3, EPS, momentum, track_running_stats=True) for m in (nk, nn))
    x = batches(1)[0]
    for norm in (layer, theirs):
        norm.num_batches_tracked = None
    torch.testing.assert_close(layer(x), theirs(x))
    torch.testing.assert_close(layer.running_mean, theirs.running_mean)
    torch.testing.assert_close(layer.running_var, theirs.running_var)
    assert (layer.running_mean == 0).all() == (momentum is None)


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_one_statistic_without_the_other_is_refused_in_evaluation_with_torchs_text(missing: str) -> None:
    for layer in (nk.BatchNorm1d(3, EPS).eval(), nn.BatchNorm1d(3, EPS).eval()):
        setattr(layer, missing, None)
        with pytest.raises(RuntimeError, match=f"{missing} must be defined in evaluation mode"):
            layer(batches(1)[0])


def test_no_gradient_flows_into_the_statistics_and_no_graph_is_kept() -> None:
    layer = nk.BatchNorm1d(3)
    x = batches(1)[0].requires_grad_()
    layer(x).sum().backward()
    for buffer in (layer.running_mean, layer.running_var):
        assert buffer is not None
        assert not buffer.requires_grad
        assert buffer.grad_fn is None


# --- statistics stay float32 in half precision, through every door ---------------------------------------------------


def by_default_dtype() -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return nk.BatchNorm1d(3)
    finally:
        torch.set_default_dtype(before)


def by_assignment() -> nn.Module:
    state = {name: v.bfloat16() if v.is_floating_point() else v for name, v in nk.BatchNorm1d(3).state_dict().items()}
    layer = nk.BatchNorm1d(3).bfloat16()
    layer.load_state_dict(state, assign=True)
    return layer


def by_swapping() -> nn.Module:
    """As `by_assignment`, but past `__setattr__`: the tensors change places."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return by_assignment()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def by_to_empty() -> nn.Module:
    layer = nk.BatchNorm1d(3, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
    layer.reset_running_stats()
    layer.reset_parameters()
    return layer


def inside_a_model(cast: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return cast(nn.Sequential(nk.BatchNorm1d(3)))[0]  # type: ignore[index]  # a Sequential again


DOORS: dict[str, Callable[[], nn.Module]] = {
    "constructor": lambda: nk.BatchNorm1d(3, dtype=torch.bfloat16),
    "default_dtype": by_default_dtype,
    "bfloat16": lambda: nk.BatchNorm1d(3).bfloat16(),
    "half": lambda: nk.BatchNorm1d(3).half().bfloat16(),
    "to_dtype": lambda: inside_a_model(lambda m: m.to(torch.bfloat16)),
    "to_device_and_dtype": lambda: inside_a_model(lambda m: m.to("cpu", torch.bfloat16)),
    "to_like": lambda: inside_a_model(lambda m: m.to(torch.zeros((), dtype=torch.bfloat16))),
    "assign": by_assignment,
    "swap": by_swapping,
    "to_empty": by_to_empty,
    "deepcopy": lambda: copy.deepcopy(nk.BatchNorm1d(3).bfloat16()),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_no_door_makes_the_statistics_narrow(door: Callable[[], nn.Module]) -> None:
    layer = door()
    assert layer.weight.dtype == torch.bfloat16
    assert layer.running_mean.dtype == layer.running_var.dtype == torch.float32  # type: ignore[union-attr]  # buffers
    y = layer(torch.randn(4, 3).bfloat16())
    assert y.dtype == torch.bfloat16


def test_a_cast_keeps_the_value_and_not_its_bfloat16_rounding() -> None:
    layer = nk.BatchNorm1d(3)
    layer(batches(1)[0])
    before = statistics(layer)
    for a, b in zip(statistics(layer.bfloat16().float())[:2], before[:2], strict=True):
        assert_same(a, b)


def test_double_statistics_stay_double_through_bfloat16() -> None:
    layer = nk.BatchNorm1d(3).double()
    assert statistics(layer)[0].dtype == torch.float64
    assert statistics(layer.bfloat16())[0].dtype == torch.float32  # wide enough; the rest of the module is bfloat16


def test_the_function_keeps_the_buffers_own_dtype() -> None:
    mean, var = torch.zeros(3), torch.ones(3)
    nk.functional.batch_norm(batches(1)[0].bfloat16(), mean, var, training=True)
    assert mean.dtype == var.dtype == torch.float32
    narrow = torch.zeros(3).bfloat16(), torch.ones(3).bfloat16()
    nk.functional.batch_norm(batches(1)[0].bfloat16(), *narrow, training=True)
    assert narrow[0].dtype == torch.bfloat16
    torch.testing.assert_close(narrow[0].float(), mean, rtol=2**-8, atol=0)  # one bfloat16 rounding


def test_training_in_bfloat16_does_not_stall() -> None:
    """A step of 0.01 * 0.05 is below half a bfloat16 ulp at 5 (0.016): a bfloat16 average would stop at about 4.8."""
    layer = nk.BatchNorm1d(1, momentum=0.01).bfloat16()
    g = generator(0)
    for _ in range(400):
        layer((gaussian((64, 1), g) + 5).bfloat16())
    expected = 5 * (1 - 0.99**400)
    assert abs(statistics(layer)[0].item() - expected) < 0.03  # the batches' own noise: 0.01 after averaging


def test_autocast_leaves_the_statistics_of_the_input_given() -> None:
    layer, x = nk.BatchNorm1d(3, EPS, momentum=1.0), batches(1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x.bfloat16())
    mean, _, counted = statistics(layer)
    assert_within(mean, x.bfloat16().double().mean((0, 2)), 8 * 2**-24 * 4)
    assert counted == 1


def test_a_warning_is_the_only_noise() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nk.BatchNorm1d(3)(batches(1)[0])
