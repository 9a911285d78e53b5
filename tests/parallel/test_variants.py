"""Synchronised batch norm on two ranks is the batch norm of both batches, in every dtype and layout; what it sends."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import normkit as nk
from normkit.contract import unit_roundoff
from normkit.distributed import _home
from normkit.functional.sync_batch_norm import of_all_ranks
from normkit.moments import Moments
from tests import processes
from tests.cases import DTYPES, EPS, MOMENTUM
from tests.parallel.variants import CHANNELS, SIZES, step, variants

LIMIT = 300.0  # seconds that a rank waits for the other; together they take half a minute of a core
MANY = 2**24 + 1  # no float32

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo's file store is for POSIX here")


@contextmanager
def noted() -> Iterator[list[tuple[str, int]]]:
    """The collectives of the block, with the bytes that this rank gives to each."""
    calls: list[tuple[str, int]] = []

    def noting(name: str, given: int) -> Any:
        own = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append((name, arguments[given].nbytes))
            return own(*arguments, **options)

        return patch.object(dist, name, call)

    with noting("all_gather", 1), noting("all_reduce", 0):
        yield calls


def collectives() -> list[tuple[str, int]]:
    """Of the second call of a layer, forward and backward."""
    layer, x = nk.SyncBatchNorm(CHANNELS), torch.randn(4, CHANNELS, 5, requires_grad=True)
    layer(x).sum().backward()
    with noted() as calls:
        layer(x).square().sum().backward()
    return calls


def with_nan(rank: int) -> dict[str, Any]:
    """Rank 1's batch holds a NaN; after it comes a good one."""
    layer = nk.SyncBatchNorm(3, EPS, MOMENTUM).double()
    x = torch.arange(12.0, dtype=torch.float64).view(4, 3) + rank
    bad = x.clone()
    if rank == 1:
        bad[0, 0] = torch.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = layer(bad)
    after = [buffer.clone() for buffer in layer.buffers()]
    return {"y": y.detach(), "after": after, "warned": len(caught), "good": layer(x).detach()}


def work(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    processes.join(folder, rank, 2, LIMIT)
    steps = {str(variant): step(nk.SyncBatchNorm, variant, rank) for variant in variants()}
    whole = of_all_ranks(Moments(MANY + rank, torch.full((3,), 1.0 + rank).double(), torch.ones(3).double()), None)
    found = {"steps": steps, "collectives": collectives(), "nan": with_nan(rank)}
    found["moments"] = {"count": whole.count, "mean": whole.mean, "m2": whole.m2}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    return processes.results("tests.parallel.test_variants", tmp_path_factory.mktemp("ranks"), 2, LIMIT)


def _order(x: Tensor) -> list[int]:
    """The axes from the innermost outwards."""
    return sorted((axis for axis in range(x.dim()) if x.shape[axis] > 1), key=lambda axis: x.stride(axis))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_ranks_are_one_batch(results: list[dict[str, Any]], dtype: str, sizes: str) -> None:
    """Within a few roundings of what is summed: two results of the same formula, each with sums of its own order."""
    unit = unit_roundoff(DTYPES[dtype])
    for variant in variants():
        if (variant.dtype, variant.sizes) != (dtype, sizes):
            continue
        expected = step(nk.BatchNorm1d if variant.space in ("nc", "ncl") else nk.SyncBatchNorm, variant, None)
        parts = [found["steps"][str(variant)] for found in results]
        assert all(part.keys() == expected.keys() for part in parts)
        for name, value in expected.items():
            got = [part[name] for part in parts]
            where = f"{variant}: {name}"
            assert got[0].dtype == got[1].dtype == value.dtype, where
            if name in ("y", "dx", "dr"):
                if variant.layout != "transposed":  # no memory format: it has no order to keep
                    assert all(_order(part) == _order(value) for part in got if part.numel()), where
                together = torch.cat([part.double() for part in got])
            elif name in ("dweight", "dbias"):
                together = got[0].double() + got[1].double()
            else:
                assert torch.equal(*got), where
                together = got[0].double()
            bound = 16 * unit * value.double().abs().max().clamp(min=8.0)
            if name.startswith("running"):
                bound = 4 * unit_roundoff(torch.float32) * value.double().abs().max()
            assert (together - value.double()).abs().max() <= bound, where


def test_a_step_takes_one_collective_each_way(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["collectives"] == [("all_gather", 8 * (2 * CHANNELS + 1)), ("all_reduce", 8 * 2 * CHANNELS)]


def test_counts_are_exact_beyond_what_a_float32_holds(results: list[dict[str, Any]]) -> None:
    count = 2 * MANY + 1
    for found in results:
        whole = found["moments"]
        assert whole["count"].item() == count
        mean = (MANY + 2 * (MANY + 1)) / count
        assert whole["mean"].tolist() == pytest.approx([mean] * 3, rel=1e-15)
        assert whole["m2"].tolist() == pytest.approx([2 + MANY * (MANY + 1) / count] * 3, rel=1e-14)


def test_a_nan_on_one_rank_moves_no_statistics_on_any(results: list[dict[str, Any]]) -> None:
    start = [buffer.double() for buffer in nk.SyncBatchNorm(3).double().buffers()]
    for found in results:
        case = found["nan"]
        assert case["y"][:, 0].isnan().all(), "all ranks see it"
        assert case["y"][:, 1:].isfinite().all(), "in its channel alone"
        assert all(torch.equal(a.double(), b) for a, b in zip(case["after"], start, strict=True))
        assert case["warned"] == 1
        assert case["good"].isfinite().all()


@pytest.fixture
def fake_group() -> Iterator[None]:
    """Four ranks of which this process is one, and nobody answers: torch's own stand-in for a group on any device."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("fake_group")
def test_no_call_waits_for_the_device(masked: bool) -> None:
    """Tensors without values, as on a device that still computes: to read one, or to copy it to the host, raises."""
    layer = nk.SyncBatchNorm(3, EPS, MOMENTUM, activation="relu", device="meta")
    x = torch.empty(4, 3, 5, device="meta", requires_grad=True)
    mask = torch.empty(4, 5, dtype=torch.bool, device="meta") if masked else None
    with (
        patch("normkit.functional.agreement.is_due", lambda *_: False),  # as at every call but a layer's first
        patch("normkit.distributed._home", lambda own, group: own),
        patch.object(dist, "all_gather", lambda *_, **__: None),
        patch.object(dist, "all_reduce", lambda *_, **__: None),
    ):
        y = layer(x, mask=mask)
        y.sum().backward()
    assert x.grad is not None
    assert x.grad.device.type == y.device.type == "meta"


@pytest.mark.usefixtures("fake_group")
@pytest.mark.parametrize(
    ("served", "own", "expected"),
    [
        (["cuda"], "cuda:1", "cuda:1"),  # NCCL, and a group made without naming a backend on a machine with GPUs
        (["cpu", "cuda"], "cuda:1", "cuda:1"),
        (["cpu", "cuda"], "cpu", "cpu"),
        (["cpu"], "cuda:1", "cpu"),
    ],
)
def test_what_is_gathered_travels_where_it_is_if_the_group_goes_there(
    served: list[str], own: str, expected: str
) -> None:
    with patch("normkit._torch.device_types", lambda group: served):
        assert _home(torch.device(own), None) == torch.device(expected)


@pytest.mark.usefixtures("fake_group")
def test_a_device_that_the_group_does_not_serve_is_refused_before_any_collective() -> None:
    layer, x = nk.SyncBatchNorm(3), torch.randn(4, 3)
    for _ in range(2):  # the second call as the first
        with (
            patch("normkit._torch.device_types", lambda group: ["cuda"]),
            noted() as calls,
            pytest.raises(RuntimeError, match="no backend for tensors on cpu, only for cuda: move model and input"),
        ):
            layer(x)
        assert calls == []


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
