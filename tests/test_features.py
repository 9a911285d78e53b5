"""The features table of docs/layers.md: our own column, checked row by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close
from torch.testing._internal.common_distributed import spawn_threads_and_init_comms  # two ranks in one process
from torch.utils.checkpoint import checkpoint

import normkit as nk

TABLE = json.loads((Path(__file__).parents[1] / "docs/data/features.json").read_text(encoding="utf-8"))
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


@check
def residual() -> None:
    x, r = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert_close(nk.BatchNorm2d(3, activation="relu")(x, residual=r), torch.relu(nn.BatchNorm2d(3)(x) + r))


@check
def mask() -> None:
    x, keep = torch.randn(2, 3, 5), nk.mask_from_lengths(torch.tensor([5, 3]))
    real = torch.cat([x[0].T, x[1, :, :3].T])
    assert_close(nk.BatchNorm1d(3)(x, mask=keep)[1, :, :3].T, nn.BatchNorm1d(3)(real)[5:])


@check
def mean_far_from_zero() -> None:
    x = (1000 + torch.randn(4, 3, 32, 32)).to(memory_format=torch.channels_last)
    truth = (x.double() - x.double().mean((0, 2, 3), keepdim=True)) / (
        x.double().var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    # float32 inputs near 1000 are exact here; the output rounds a handful of times
    assert_close(nk.BatchNorm2d(3)(x).double(), truth, rtol=0, atol=2e-6)


@check
def third_derivative() -> None:
    def third(norm: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        x = torch.tensor([[0.3], [0.6], [-0.1], [0.2]], dtype=torch.float64, requires_grad=True)
        value = (torch.arange(4.0)[:, None] * norm(x) ** 2).sum()
        for _ in range(3):
            value = torch.autograd.grad(value, x, create_graph=True)[0][0, 0]
        return value

    truth = third(lambda x: (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    assert_close(third(nk.BatchNorm1d(1, dtype=torch.float64)), truth, rtol=1e-9, atol=1e-9)


@check
def vmap() -> None:
    layer, all_at_once = nk.BatchNorm1d(3), nk.BatchNorm1d(3)
    x = torch.randn(5, 4, 3)
    torch.func.vmap(layer)(x)
    all_at_once(x.flatten(0, 1))
    assert_close(layer.running_var, all_at_once.running_var)


@check
def half_statistics() -> None:
    layer = nk.BatchNorm2d(3).bfloat16()
    assert layer.weight.dtype == torch.bfloat16
    assert layer.running_var is not None
    assert layer.running_var.dtype == torch.float32


@check
def non_finite() -> None:
    layer = nk.BatchNorm1d(1)
    with pytest.warns(RuntimeWarning, match="NaN or Inf"):
        layer(torch.tensor([[1.0], [float("inf")]]))
    assert layer.running_var is not None
    assert layer.running_var.item() == 1.0


@check
def checkpoint_once() -> None:
    layer = nk.BatchNorm1d(3)
    checkpoint(layer, torch.randn(4, 3, requires_grad=True), use_reentrant=False).sum().backward()
    assert layer.num_batches_tracked is not None
    assert layer.num_batches_tracked.item() == 1


@check
def deferred() -> None:
    layer, whole, x = nk.BatchNorm1d(3), nk.BatchNorm1d(3), torch.randn(8, 3)
    with nk.deferred_statistics(layer):
        layer(x[:3]), layer(x[3:])
    whole(x)
    assert_close(layer.running_var, whole.running_var)


@check
def small_batch() -> None:
    assert nk.BatchNorm2d(3, small_batch="running")(torch.randn(1, 3, 1, 1)).isfinite().all()


@check
def ghost() -> None:
    x = torch.randn(8, 3)
    y = nk.GhostBatchNorm1d(3, virtual_batch_size=4)(x)
    assert_close(y[:4], nn.BatchNorm1d(3)(x[:4]))


@check
def renorm() -> None:
    layer, x = nk.BatchRenorm1d(3, warm_up=(0, 0, 0)), 2 * torch.randn(8, 3) + 1
    layer.running_mean.fill_(0.5), layer.running_var.fill_(4.0)
    # r and d stay within their limits here, so training gives what evaluation would, and batch norm something else
    assert_close(layer(x), (x - 0.5) / (4.0 + 1e-5) ** 0.5)


@check
def frozen() -> None:
    layer, x = nk.FrozenBatchNorm2d(3).train(), torch.randn(2, 3, 4, 4)
    assert_close(layer(x), nn.BatchNorm2d(3).eval()(x))


@check
def sync_cpu() -> None:
    x, parts = torch.randn(4, 3, 2, 2), {}

    @spawn_threads_and_init_comms(world_size=2)
    def two_ranks(_: None) -> None:
        rank = dist.get_rank()
        parts[rank] = nk.SyncBatchNorm(3)(x.split((3, 1))[rank])

    two_ranks(None)
    assert_close(torch.cat([parts[0], parts[1]]), nn.BatchNorm2d(3)(x))


@check
def modulate() -> None:
    x, scale, shift = torch.randn(2, 3, 4, 4), torch.randn(2, 3), torch.randn(2, 3, 1, 1)
    expected = torch.relu(nn.functional.group_norm(x, 3) * scale[:, :, None, None] + shift)
    assert_close(nk.GroupNorm(3, 3, activation="relu")(x, modulate=(scale, shift)), expected)


@check
def domains() -> None:
    x = torch.randn(6, 3, 4, 4)
    y = nk.DomainBatchNorm2d(3, domains=2)(x, torch.tensor([0, 1, 0, 1, 1, 0]))
    assert_close(y[[0, 2, 5]], nn.BatchNorm2d(3)(x[[0, 2, 5]]))


@check
def layer_norm_2d() -> None:
    x = torch.randn(2, 6, 3, 3)
    assert_close(
        nk.LayerNorm2d(6, eps=1e-6)(x),
        nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,), eps=1e-6).permute(0, 3, 1, 2),
    )


@check
def instance_layout() -> None:
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    assert nk.InstanceNorm2d(4)(x).is_contiguous(memory_format=torch.channels_last)


@check
def instance_momentum() -> None:
    layer = nk.InstanceNorm1d(2, momentum=None, track_running_stats=True)
    x = torch.randn(3, 2, 7)
    layer(x)
    assert layer.running_mean is not None
    assert_close(layer.running_mean, x.mean((0, 2)))


@check
def recalibrate() -> None:
    model, x = nn.Sequential(nk.BatchNorm1d(3)), torch.randn(10, 3) + 5
    nk.recalibrate(model, [x[:3], x[3:]], progress=False)
    assert_close(model[0].running_var, x.var(0))


CHECKS["checkpoint"] = CHECKS.pop("checkpoint_once")


@pytest.mark.parametrize("row", TABLE["features"], ids=lambda row: row["id"])
def test_what_the_table_says_of_normkit_holds(row: dict[str, str]) -> None:
    torch.manual_seed(0)
    assert row["normkit"] == "yes"
    CHECKS[row["id"]]()


def test_every_check_is_in_the_table() -> None:
    assert {row["id"] for row in TABLE["features"]} == set(CHECKS)
