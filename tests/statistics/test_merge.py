"""Statistics of several models merge as the moments of all their data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk

SIZES = (7, 20, 33)


def client(index: int, kind: type[nn.Module] = nn.BatchNorm1d, **options: Any) -> nn.Module:
    """A norm that holds the population statistics of its data, and the data."""
    generator = torch.Generator().manual_seed(index)
    data = torch.randn(SIZES[index], 3, generator=generator, dtype=torch.float64) * (index + 1) + 2.0 * index
    norm = kind(3, **options).double()
    norm.running_mean.copy_(data.mean(0))
    norm.running_var.copy_(data.var(0, correction=0))
    norm.num_batches_tracked.fill_(10 + index)
    norm.data = data
    return norm


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm, nk.BatchNorm1d, nk.FrozenBatchNorm1d])
def test_the_merged_statistics_are_those_of_all_data(kind: type[nn.Module]) -> None:
    clients = [client(index, kind) for index in range(3)]
    data = torch.cat([norm.data for norm in clients])
    merged = nk.merge_statistics(clients, weights=SIZES)
    torch.testing.assert_close(merged["running_mean"], data.mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(merged["running_var"], data.var(0, correction=0), rtol=1e-13, atol=0)
    assert merged["num_batches_tracked"] == 12


def test_the_spread_of_the_means_counts() -> None:
    """Variances 1.0 and 1.288 around means that lie 0.405 apart: the average of the variances says 1.144."""
    states = [
        {"running_mean": torch.tensor([m]), "running_var": torch.tensor([v])} for m, v in ((0.0, 1.0), (0.405, 1.288))
    ]
    assert sum(float(state["running_var"]) for state in states) / 2 == pytest.approx(1.144)
    assert float(nk.merge_statistics(states)["running_var"]) == pytest.approx(1.185, abs=1e-3)


def test_unbiased_variances_of_shards_merge_to_the_whole_sets_but_for_the_share_of_the_corrections() -> None:
    model, data = nn.Sequential(nn.BatchNorm1d(3).double()), torch.randn(60, 3, dtype=torch.float64) ** 3 + 1
    shards = data.split(list(SIZES))
    clients = [copy.deepcopy(model) for _ in shards]
    for one, shard in zip(clients, shards, strict=True):
        nk.recalibrate(one, [shard])
    nk.recalibrate(model, [data])
    merged = nk.merge_statistics(clients, SIZES)
    torch.testing.assert_close(merged["0.running_mean"], model[0].running_mean, rtol=1e-12, atol=1e-15)
    whole = model[0].running_var  # sum((m_k - 1) var_k + m_k d_k^2) = (60 - 1) whole
    more = (sum(client[0].running_var for client in clients) - whole) / 60
    torch.testing.assert_close(merged["0.running_var"], whole + more, rtol=1e-12, atol=0)


def test_only_the_ratios_of_the_weights_count_and_a_weight_of_0_leaves_out() -> None:
    clients = [client(index) for index in range(3)]
    clients[1].running_mean.fill_(float("nan"))
    wanted = nk.merge_statistics([clients[0], clients[2]], [1, 3])
    for weights in ([2.0, 0, 6.0], torch.tensor([1e-9, 0, 3e-9]), [1 / 4, 0.0, 3 / 4]):
        merged = nk.merge_statistics(clients, weights)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(
                merged[name], wanted[name], rtol=1e-6 if torch.is_tensor(weights) else 1e-13, atol=0
            )


def test_means_far_from_zero_cost_no_digits() -> None:
    clients = [client(index) for index in range(3)]
    wanted = nk.merge_statistics(clients, SIZES)["running_var"]
    for one in clients:
        one.running_mean += 1e8
    torch.testing.assert_close(nk.merge_statistics(clients, SIZES)["running_var"], wanted, rtol=1e-7, atol=0)


def test_models_and_states_mix_and_the_result_loads() -> None:
    def net(index: int) -> nn.Module:
        norms = [client(index), client(index, nk.BatchNorm1d, affine=False)]
        return nn.Sequential(nn.Linear(3, 3), *norms, nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))

    models = [net(index) for index in range(3)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    merged = nk.merge_statistics([models[0], models[1].state_dict(), models[2]], SIZES)
    assert list(merged) == [key for key in models[0].state_dict() if "running" in key or "tracked" in key]
    assert not any(value.requires_grad for value in merged.values())
    result = models[0].load_state_dict(merged, strict=False)
    assert not result.unexpected_keys
    assert torch.equal(models[0][2].running_var, merged["2.running_var"])
    models[1].load_state_dict({**models[1].state_dict(), **merged}, strict=True)
    assert all(torch.equal(models[2].state_dict()[key], value) for key, value in before[2].items())


def test_half_precision_states_give_float32_statistics() -> None:
    states = [{"n.running_mean": torch.ones(2).half() * k, "n.running_var": torch.ones(2).half()} for k in (1, 2)]
    merged = nk.merge_statistics(states)
    assert {value.dtype for value in merged.values()} == {torch.float32}
    assert torch.equal(merged["n.running_var"], torch.full((2,), 1.25))


def test_what_is_no_statistic_of_channels_is_left_alone() -> None:
    def state(value: float) -> dict[str, Tensor]:
        images = {f"obs.{name}": torch.full((3, 8, 8), value) for name in ("running_mean", "running_var")}
        return {
            **images,
            "alone.running_mean": torch.ones(3),
            "bn.running_mean": torch.ones(3),
            "bn.running_var": torch.ones(3),
        }

    assert list(nk.merge_statistics([state(0.0), state(1.0)])) == ["bn.running_mean", "bn.running_var"]


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


NORM = nn.BatchNorm1d(3).state_dict()
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "one model": (lambda: nk.merge_statistics(nn.BatchNorm1d(3)), TypeError, "a list of models"),  # type: ignore[arg-type]
    "one state": (lambda: nk.merge_statistics(NORM), TypeError, "a list of models"),  # type: ignore[arg-type]
    "no model": (lambda: nk.merge_statistics([]), ValueError, "at least one"),
    "a tensor": (lambda: nk.merge_statistics([NORM, torch.ones(3)]), TypeError, r"models\[1\].*got Tensor"),  # type: ignore[list-item]
    "a wrapper's keys": (lambda: nk.merge_statistics([NORM, renamed(NORM)]), ValueError, r"models\[1\] lacks num_b"),
    "one layer more": (
        lambda: nk.merge_statistics([NORM, {**NORM, **renamed(NORM)}]),
        ValueError,
        r"models\[1\] has besides module\.num_batches_tracked, module\.running_mean, module\.running_var",
    ),
    "another shape": (
        lambda: nk.merge_statistics([NORM, nn.BatchNorm1d(4)]),
        ValueError,
        r"running_mean of models\[1\] has shape \(4,\), expected \(3,\)",
    ),
    "nothing to merge": (lambda: nk.merge_statistics([nn.LayerNorm(3)]), ValueError, "no running statistics"),
    "meta": (lambda: nk.merge_statistics([nn.BatchNorm1d(3, device="meta")]), ValueError, "meta device"),
    "lazy": (lambda: nk.merge_statistics([nn.LazyBatchNorm1d()]), ValueError, "lazy"),
    "nan": (
        lambda: nk.merge_statistics([NORM, {**NORM, "running_var": torch.full((3,), float("nan"))}]),
        ValueError,
        r"running_var of models\[1\] holds NaN",
    ),
    "too few weights": (lambda: nk.merge_statistics([NORM, NORM], [1]), ValueError, "got 1 for 2 models"),
    "negative": (lambda: nk.merge_statistics([NORM, NORM], [1, -1]), ValueError, "at least 0"),
    "all 0": (lambda: nk.merge_statistics([NORM, NORM], [0, 0]), ValueError, "not all 0"),
    "infinite": (lambda: nk.merge_statistics([NORM, NORM], [1, float("inf")]), ValueError, "finite"),
}


@pytest.mark.parametrize(("call", "error", "text"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_an_error_that_says_what(
    call: Callable[[], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call()
