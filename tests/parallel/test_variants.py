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
from normkit.functional.sync_batch_norm import of_all_ranks
from normkit.moments import Moments
from tests import processes
from tests.cases import DTYPES, EPS, MOMENTUM
from tests.parallel.variants import CHANNELS, SIZES, step, variants

LIMIT = 120.0  # seconds that a rank waits for the other; together they take half a minute of a core
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
    whole = of_all_ranks(Moments(MANY + rank, torch.full((3,), 1.0 + rank), torch.ones(3)), None)
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
    """Fake tensors have no values: whatever would read one on the host raises; a copy to the CPU is noted."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    moved: list[str] = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            given = [a.device.type for a in args if isinstance(a, Tensor)]
            if isinstance(result, Tensor) and result.device.type == "cpu" and "cuda" in given:
                moved.append(str(func))
            return result

    with patch("normkit.functional.agreement.is_due", lambda *_: False), FakeTensorMode(), Watched():
        # of the second call on: the first one agrees on the host
        layer = nk.SyncBatchNorm(3, EPS, MOMENTUM, activation="relu", device="cuda")
        x = torch.empty(4, 3, 5, device="cuda", requires_grad=True)
        y = layer(x, mask=torch.empty(4, 5, dtype=torch.bool, device="cuda") if masked else None)
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.device.type == y.device.type == "cuda"
    assert moved == []


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
